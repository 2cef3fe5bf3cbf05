"""Pixels as arrays: what changed between two frames, and how a client of RFB wants them (RFC 6143, 7.4)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ringfence.backends.api import Frame

Rgb = NDArray[np.uint8]  # (height, width, 3)
Pixels = NDArray[Any]  # (height, width) of one unsigned number each
Tiles = NDArray[np.bool_]  # (rows, columns) of tiles

TILE_WIDTH, TILE_HEIGHT = 64, 16
MOST_PIXELS = 1 << 18  # of a rectangle: the tight encoding counts up to 4 MiB


class Rect(NamedTuple):
    x: int
    y: int
    width: int
    height: int

    def within(self, width: int, height: int) -> Rect:
        """The part of it that lies on a screen of this size; may be empty."""
        x, y = min(self.x, width), min(self.y, height)
        return Rect(x, y, min(self.width, width - x), min(self.height, height - y))


def as_array(frame: Frame) -> Rgb:
    return np.frombuffer(frame.rgb, np.uint8).reshape(frame.height, frame.width, 3)


def fitted(pixels: Rgb, width: int, height: int) -> Rgb:
    """The picture on a canvas of another size: cut off, or with black to the right and below."""
    canvas = np.zeros((height, width, 3), np.uint8)
    part = pixels[:height, :width]
    canvas[: part.shape[0], : part.shape[1]] = part
    return canvas


# -- tiles


def all_tiles(width: int, height: int, value: bool) -> Tiles:
    return np.full((-(-height // TILE_HEIGHT), -(-width // TILE_WIDTH)), value)


def changed_tiles(old: Rgb, new: Rgb) -> Tiles:
    """Which tiles of two pictures of the same size differ."""
    height, width = new.shape[:2]
    rows = np.logical_or.reduceat(new != old, range(0, height, TILE_HEIGHT), axis=0).reshape(-1, width * 3)
    return np.asarray(np.logical_or.reduceat(rows, range(0, width * 3, TILE_WIDTH * 3), axis=1))


def tiles_of(rect: Rect) -> tuple[slice, slice]:
    """The tiles that a rectangle touches, as an index."""
    down = slice(rect.y // TILE_HEIGHT, -(-(rect.y + rect.height) // TILE_HEIGHT))
    return down, slice(rect.x // TILE_WIDTH, -(-(rect.x + rect.width) // TILE_WIDTH))


def rectangles(tiles: Tiles, width: int, height: int, widest: int = MOST_PIXELS // TILE_HEIGHT) -> Iterator[Rect]:
    """Rectangles that cover the tiles set: runs in a row of tiles, joined with equal runs below.  None is wider than `widest` or
    larger than MOST_PIXELS."""
    open_runs: dict[tuple[int, int], int] = {}  # (first, past last column) -> the row it began in
    empty = np.zeros(tiles.shape[1], np.bool_)
    for row in range(tiles.shape[0] + 1):
        line = tiles[row] if row < tiles.shape[0] else empty
        edges = np.flatnonzero(np.diff(np.concatenate(([False], line, [False])).astype(np.int8))).tolist()
        runs = list(zip(edges[::2], edges[1::2], strict=True))
        for run in [run for run in open_runs if run not in runs]:
            top, bottom = open_runs.pop(run) * TILE_HEIGHT, min(row * TILE_HEIGHT, height)
            left, right = run[0] * TILE_WIDTH, min(run[1] * TILE_WIDTH, width)
            for x in range(left, right, widest):
                part = min(widest, right - x)
                tallest = max(MOST_PIXELS // part, TILE_HEIGHT)
                for y in range(top, bottom, tallest):
                    yield Rect(x, y, part, min(tallest, bottom - y))
        for run in runs:
            open_runs.setdefault(run, row)


# -- formats


class BadFormat(ValueError):
    """A pixel format that no client can mean."""


@dataclass(frozen=True)
class PixelFormat:
    """How a client wants pixels: RFC 6143, 7.4.  Without true colour it gets the palette of `PALETTE_FORMAT`."""

    bits: int = 32
    depth: int = 24
    big_endian: bool = False
    true_color: bool = True
    maxima: tuple[int, int, int] = (255, 255, 255)
    shifts: tuple[int, int, int] = (16, 8, 0)

    @classmethod
    def unpack(cls, data: bytes) -> PixelFormat:
        bits, depth, big, true_color, *rest = struct.unpack(">BBBBHHHBBB3x", data)
        red, green, blue, *shifts = rest
        if bits not in (8, 16, 32):
            raise BadFormat(f"pixels of {bits} bits")
        if not true_color:
            if bits != 8:
                raise BadFormat(f"a palette for pixels of {bits} bits")
            return PALETTE_FORMAT
        if any(shift >= bits for shift in shifts):
            raise BadFormat(f"shifts {shifts} in pixels of {bits} bits")
        return cls(bits, depth, bool(big), True, (red, green, blue), (shifts[0], shifts[1], shifts[2]))

    def pack(self) -> bytes:
        return struct.pack(">BBBBHHHBBB3x", self.bits, self.depth, self.big_endian, self.true_color, *self.maxima, *self.shifts)

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(f"{'>' if self.big_endian else '<'}u{self.bits // 8}")

    @cached_property
    def _tables(self) -> list[NDArray[np.uint32]]:
        """For each colour, what its 256 values add to a pixel."""
        mask = (1 << self.bits) - 1
        return [
            np.array([((value * top + 127) // 255 << shift) & mask for value in range(256)], np.uint32)
            for top, shift in zip(self.maxima, self.shifts, strict=True)
        ]

    @property
    def three_bytes(self) -> bool:
        """Whether the tight encoding leaves a byte out (TPIXEL)."""
        return self.true_color and self.bits == 32 and self.depth == 24 and self.maxima == (255, 255, 255)

    def convert(self, rgb: Rgb) -> Pixels:
        """Pixels as the client reads them, in its byte order."""
        if (
            self.bits == 32
            and self.maxima == (255, 255, 255)
            and not any(shift % 8 for shift in self.shifts)
            and len(set(self.shifts)) == 3
        ):
            quads = np.zeros((*rgb.shape[:2], 4), np.uint8)  # what nearly all clients ask for, several times faster
            for channel, shift in enumerate(self.shifts):
                quads[..., 3 - shift // 8 if self.big_endian else shift // 8] = rgb[..., channel]
            return quads.view(self.dtype)[..., 0]
        red, green, blue = self._tables
        return (red[rgb[..., 0]] | green[rgb[..., 1]] | blue[rgb[..., 2]]).astype(self.dtype)

    def palette(self) -> list[tuple[int, int, int]]:
        """The colour of every value that a pixel without true colour can have, 16 bits a channel."""
        return [
            (
                (value >> self.shifts[0] & self.maxima[0]) * 65535 // self.maxima[0],
                (value >> self.shifts[1] & self.maxima[1]) * 65535 // self.maxima[1],
                (value >> self.shifts[2] & self.maxima[2]) * 65535 // self.maxima[2],
            )
            for value in range(256)
        ]


PALETTE_FORMAT = PixelFormat(8, 8, False, False, (7, 7, 3), (0, 3, 6))
