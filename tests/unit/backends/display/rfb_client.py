"""A VNC client for tests, written from RFC 6143 and the description of tight, independently of the server."""

from __future__ import annotations

import socket
import struct
import zlib
from typing import Any

import numpy as np

from ringfence.backends.display.des import vnc_response

RAW, HEXTILE, ZLIB, TIGHT = 0, 5, 6, 7
DESKTOP_SIZE, POINTER_MOTION, EXTENDED_KEYS, EXTENDED_DESKTOP_SIZE = -223, -257, -258, -308


class Refused(Exception):
    """The server did not let the client in; the text is its reason."""


class RfbClient:
    """Connects, and keeps a picture of the screen: `pixels`, one number each, in the format that was set."""

    def __init__(self, address: tuple[str, int], version: str = "003.008", password: str | None = None, shared: bool = True) -> None:
        self.socket = socket.create_connection(address, timeout=10)
        self.version = version
        self.order, self.bits = "<", 32
        self.maxima, self.shifts = (255, 255, 255), (16, 8, 0)
        self.depth = 24
        self.news: list[tuple[int, int, int, int, int]] = []
        self.palette: list[tuple[int, int, int]] | None = None
        self.kinds: set[int] = set()
        self._unpackers: dict[int, Any] = {}
        self._handshake(password)
        self.send(struct.pack("B", shared))
        self.width, self.height = struct.unpack(">HH", self.receive(4))
        self.server_format = self.receive(16)
        (length,) = struct.unpack(">I", self.receive(4))
        self.name = self.receive(length).decode()
        self.pixels = np.zeros((self.height, self.width), np.uint32)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> RfbClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self, size_bytes: int) -> bytes:
        data = bytearray()
        while len(data) < size_bytes:
            part = self.socket.recv(size_bytes - len(data))
            if not part:
                raise EOFError(f"the server has gone after {len(data)} of {size_bytes} bytes")
            data += part
        return bytes(data)

    def _handshake(self, password: str | None) -> None:
        assert self.receive(12) == b"RFB 003.008\n"
        self.send(f"RFB {self.version}\n".encode())
        if self.version == "003.003":
            (kind,) = struct.unpack(">I", self.receive(4))
        else:
            kinds = self.receive(self.receive(1)[0])
            kind = 2 if password is not None and 2 in kinds else kinds[0]
            self.send(bytes([kind]))
        if kind == 2:
            self.send(vnc_response(password or "", self.receive(16)))
        if kind == 2 or self.version == "003.008":
            (result,) = struct.unpack(">I", self.receive(4))
            if result:
                raise Refused(self._text() if self.version == "003.008" else "")

    def _text(self) -> str:
        (length,) = struct.unpack(">I", self.receive(4))
        return self.receive(length).decode()

    # -- asking

    def set_format(
        self, bits: int, depth: int, big: bool, maxima: tuple[int, int, int], shifts: tuple[int, int, int], true: bool = True
    ) -> None:
        self.bits, self.depth, self.maxima, self.shifts = bits, depth, maxima, shifts
        self.order = ">" if big else "<"
        self.send(struct.pack(">B3xBBBBHHHBBB3x", 0, bits, depth, big, true, *maxima, *shifts))

    def set_encodings(self, *kinds: int) -> None:
        self.send(struct.pack(f">BxH{len(kinds)}i", 2, len(kinds), *kinds))

    def ask(self, incremental: bool = True, area: tuple[int, int, int, int] | None = None) -> None:
        self.send(struct.pack(">BBHHHH", 3, incremental, *(area or (0, 0, self.width, self.height))))

    def key(self, keysym: int, down: bool) -> None:
        self.send(struct.pack(">BBxxI", 4, down, keysym))

    def extended_key(self, keysym: int, scancode: int, down: bool) -> None:
        self.send(struct.pack(">BBHII", 255, 0, down, keysym, scancode))

    def pointer(self, mask: int, x: int, y: int) -> None:
        self.send(struct.pack(">BBHH", 5, mask, x, y))

    # -- being told

    def update(self) -> list[tuple[int, int, int, int, int]]:
        """Takes messages up to the next update and returns its rectangles: x, y, width, height, encoding."""
        while True:
            kind = self.receive(1)[0]
            if kind == 0:
                break
            assert kind == 1, f"message {kind}"
            _, count = struct.unpack(">xHH", self.receive(5))
            self.palette = [struct.unpack(">HHH", self.receive(6)) for _ in range(count)]
        (count,) = struct.unpack(">xH", self.receive(3))
        return [self._rectangle() for _ in range(count)]

    def _rectangle(self) -> tuple[int, int, int, int, int]:
        x, y, width, height, kind = rect = struct.unpack(">HHHHi", self.receive(12))
        self.kinds.add(kind)
        if kind < 0:
            self.news.append(rect)
            if kind == EXTENDED_DESKTOP_SIZE:
                screens = self.receive(4)[0]
                self.receive(16 * screens)
            if kind in (DESKTOP_SIZE, EXTENDED_DESKTOP_SIZE) and y == 0:
                self.width, self.height = width, height
                self.pixels = np.zeros((height, width), np.uint32)
            return rect
        decode = {RAW: self._raw, ZLIB: self._zlib, TIGHT: self._tight, HEXTILE: self._hextile}[kind]
        assert x + width <= self.width and y + height <= self.height
        self.pixels[y : y + height, x : x + width] = decode(width, height)
        return rect

    def _numbers(self, data: bytes) -> Any:
        return np.frombuffer(data, np.dtype(f"{self.order}u{self.bits // 8}")).astype(np.uint32)

    def _raw(self, width: int, height: int) -> Any:
        return self._numbers(self.receive(width * height * self.bits // 8)).reshape(height, width)

    def _zlib(self, width: int, height: int) -> Any:
        (length,) = struct.unpack(">I", self.receive(4))
        return self._numbers(self._unpack(-1, self.receive(length))).reshape(height, width)

    def _unpack(self, stream: int, data: bytes) -> bytes:
        unpacker = self._unpackers.setdefault(stream, zlib.decompressobj())
        result: bytes = unpacker.decompress(data)
        return result

    def _hextile(self, width: int, height: int) -> Any:
        result = np.zeros((height, width), np.uint32)
        pixel_bytes = self.bits // 8
        background: Any = None
        for y in range(0, height, 16):
            for x in range(0, width, 16):
                w, h = min(16, width - x), min(16, height - y)
                flags = self.receive(1)[0]
                assert not flags & ~3, "subrectangles are not expected"
                if flags & 1:
                    result[y : y + h, x : x + w] = self._raw(w, h)
                    background = None
                    continue
                if flags & 2:
                    background = self._numbers(self.receive(pixel_bytes))[0]
                assert background is not None, "no background after a raw tile"
                result[y : y + h, x : x + w] = background
        return result

    def _tight(self, width: int, height: int) -> Any:
        assert width <= 2048
        control = self.receive(1)[0]
        assert not control & 0xF, "no stream is ever reset"
        if control == 0x80:
            return np.full((height, width), self._tpixels(self.receive(self._tpixel_bytes()))[0])
        assert control < 0x80, "JPEG was not asked for"
        stream = control >> 4 & 3
        if control & 0x40:
            assert self.receive(1) == b"\1", "palette is the only filter"
            colors = self._tpixels(self.receive((self.receive(1)[0] + 1) * self._tpixel_bytes()))
            if len(colors) == 2:
                row = -(-width // 8)
                bits = np.frombuffer(self._tight_data(stream, row * height), np.uint8).reshape(height, row)
                return colors[np.unpackbits(bits, axis=1)[:, :width]]
            return colors[np.frombuffer(self._tight_data(stream, width * height), np.uint8).reshape(height, width)]
        return self._tpixels(self._tight_data(stream, width * height * self._tpixel_bytes())).reshape(height, width)

    def _tight_data(self, stream: int, size_bytes: int) -> bytes:
        if size_bytes < 12:
            return self.receive(size_bytes)
        length = 0
        for shift in (0, 7, 14):
            byte = self.receive(1)[0]
            length |= (byte if shift == 14 else byte & 0x7F) << shift
            if not byte & 0x80 or shift == 14:
                break
        data = self._unpack(stream, self.receive(length))
        assert len(data) == size_bytes
        return data

    def _tpixel_bytes(self) -> int:
        return 3 if self.bits == 32 and self.depth == 24 and self.maxima == (255, 255, 255) else self.bits // 8

    def _tpixels(self, data: bytes) -> Any:
        if self._tpixel_bytes() != 3 or self.bits != 32:
            return self._numbers(data)
        parts = np.frombuffer(data, np.uint8).reshape(-1, 3).astype(np.uint32)
        return parts[:, 0] << self.shifts[0] | parts[:, 1] << self.shifts[1] | parts[:, 2] << self.shifts[2]

    def expected(self, picture: Any) -> Any:
        """What `pixels` should be for a picture of red, green and blue."""
        wide = picture.astype(np.uint32)
        result = np.zeros(picture.shape[:2], np.uint32)
        for channel in range(3):
            result |= (wide[..., channel] * self.maxima[channel] + 127) // 255 << self.shifts[channel]
        return result
