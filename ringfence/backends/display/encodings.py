"""How rectangles of pixels travel to a client: raw, hextile, zlib and tight (RFC 6143, 7.7; tight as TightVNC and the community's
description of RFB define it, without JPEG: everything here is lossless).

An encoder belongs to one client, whose decompressor remembers what came before.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringfence.backends.display.pixels import PixelFormat, Pixels, Rgb

RAW, HEXTILE, ZLIB, TIGHT = 0, 5, 6, 7
TIGHT_WIDEST = 2048
_LEVEL = 2  # time matters more than size: most pictures are few colours in long runs

_HEXTILE_RAW, _HEXTILE_BACKGROUND = 1, 2
_TIGHT_FILL, _TIGHT_FILTER = 0x80, 0x40
_FILTER_PALETTE = 1
_STREAM_FULL, _STREAM_MONO, _STREAM_PALETTE = 0, 1, 2
_COMPARED_COLORS = 8
_UNCOMPRESSED_BYTES = 12  # tight sends less than this as it is


class Encoder:
    """`encode(rgb)` is a rectangle's data in the encoding that was chosen; `kind` is its number."""

    def __init__(self) -> None:
        self.kind = RAW
        self._zlib: dict[int, zlib._Compress] = {}
        self._ways: dict[int, Callable[[Rgb, PixelFormat], bytes]] = {
            RAW: self._raw,
            HEXTILE: self._hextile,
            ZLIB: self._zipped,
            TIGHT: self._tight,
        }

    def choose(self, encodings: list[int]) -> None:
        """Takes the first that is known of a client's list, best first."""
        self.kind = next((kind for kind in encodings if kind in self._ways), RAW)

    def encode(self, rgb: Rgb, form: PixelFormat) -> bytes:
        return self._ways[self.kind](rgb, form)

    def _compress(self, stream: int, data: bytes) -> bytes:
        packer = self._zlib.get(stream)
        if packer is None:
            packer = self._zlib[stream] = zlib.compressobj(_LEVEL)
        return packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)

    def _raw(self, rgb: Rgb, form: PixelFormat) -> bytes:
        return form.convert(rgb).tobytes()

    def _zipped(self, rgb: Rgb, form: PixelFormat) -> bytes:
        data = self._compress(-1, form.convert(rgb).tobytes())
        return len(data).to_bytes(4, "big") + data

    def _hextile(self, rgb: Rgb, form: PixelFormat) -> bytes:
        """Tiles of one colour as that colour, others raw; who wants less bytes asks for zlib or tight."""
        pixels = form.convert(rgb)
        parts = []
        background = None
        for y in range(0, pixels.shape[0], 16):
            for x in range(0, pixels.shape[1], 16):
                tile = pixels[y : y + 16, x : x + 16]
                first = tile[0, 0]
                if not (tile == first).all():
                    parts += [bytes([_HEXTILE_RAW]), tile.tobytes()]
                    background = None  # unspecified after a raw tile
                elif first == background:
                    parts.append(b"\0")
                else:
                    parts += [bytes([_HEXTILE_BACKGROUND]), tile[:1, :1].tobytes()]  # a single item would lose its byte order
                    background = first
        return b"".join(parts)

    def _tight(self, rgb: Rgb, form: PixelFormat) -> bytes:
        pixels = form.convert(rgb)
        found = _few_colors(pixels)
        if found is None:
            data = _tpixels(pixels, form)
            return bytes([_STREAM_FULL << 4]) + self._packed(_STREAM_FULL, data)
        colors, indices = found
        if len(colors) == 1:
            return bytes([_TIGHT_FILL]) + _tpixels(colors, form)
        if len(colors) == 2:
            stream, data = _STREAM_MONO, np.packbits(indices.astype(np.bool_), axis=1).tobytes()
        else:
            stream, data = _STREAM_PALETTE, indices.astype(np.uint8).tobytes()
        head = bytes([_TIGHT_FILTER | stream << 4, _FILTER_PALETTE, len(colors) - 1])
        return head + _tpixels(colors, form) + self._packed(stream, data)

    def _packed(self, stream: int, data: bytes) -> bytes:
        if len(data) < _UNCOMPRESSED_BYTES:
            return data
        packed = self._compress(stream, data)
        return _compact(len(packed)) + packed


def _compact(length: int) -> bytes:
    """Seven bits a byte, the low ones first; the third byte holds eight."""
    if length < 1 << 7:
        return bytes([length])
    if length < 1 << 14:
        return bytes([length & 0x7F | 0x80, length >> 7])
    return bytes([length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14])


def _tpixels(pixels: Pixels, form: PixelFormat) -> bytes:
    if not form.three_bytes:
        return pixels.tobytes()
    parts = [(pixels >> shift).astype(np.uint8) for shift in form.shifts]
    return np.stack(parts, axis=-1).tobytes()


def _few_colors(pixels: Pixels) -> tuple[Pixels, NDArray[Any]] | None:
    """The colours of a rectangle and each pixel's place among them, when they are at most 256."""
    sample = pixels[:: 1 + pixels.shape[0] // 32, :: 1 + pixels.shape[1] // 128]
    colors = np.unique(sample)
    for _ in range(3):
        if len(colors) > 256:
            return None
        indices = _indices(pixels, colors)
        missed = pixels[colors[indices] != pixels]
        if not missed.size:
            return colors, indices
        if missed.size > pixels.size // 4:
            return None
        colors = np.union1d(colors, missed).astype(pixels.dtype)
    return None


def _indices(pixels: Pixels, colors: Pixels) -> NDArray[Any]:
    """Each pixel's place among the sorted colours; any place for a pixel of another colour."""
    if len(colors) > _COMPARED_COLORS:
        return np.minimum(np.searchsorted(colors, pixels), len(colors) - 1)
    places = np.zeros(pixels.shape, np.uint8)  # as good, and quicker for the few colours of a console
    for place, color in enumerate(colors[1:], 1):
        places += (pixels == color).view(np.uint8) * np.uint8(place)
    return places
