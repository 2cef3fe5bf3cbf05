"""Unpacks the vmlinux inside a bzImage on the host, so that the guest need not run its decompressor.

The payload is one of the formats of Linux lib/decompress.c, known by its first bytes, and ends in the unpacked size (32 bits, little
endian), which gzip's own trailer supplies and the kernel's build appends for the others (scripts/Makefile.lib, size_append).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from ringfence.core.errors import RingfenceError
from ringfence.core.late import LateModule
from ringfence.core.units import GIB, MIB

if TYPE_CHECKING:
    import bz2
    import lzma

    import zstandard
    from lz4 import block as lz4_block
else:  # a kernel is packed in one way only
    bz2 = LateModule("bz2")
    lzma = LateModule("lzma")
    lz4_block = LateModule("lz4.block")
    zstandard = LateModule("zstandard")

MAX_KERNEL_BYTES = 1 * GIB
_LZ4_LEGACY_BLOCK_BYTES = 8 * MIB
_ZSTD_WINDOW_MAX_BYTES = 1 << 31  # zstd -22 --ultra makes frames that need more than the library's default


class UnpackError(RingfenceError):
    """The payload is damaged."""


class UnknownPackingError(RingfenceError):
    """The payload's format has no decompressor here; the kernel's own has to do it."""


def unpack(payload: bytes | memoryview) -> bytes:
    """The unpacked payload.  Raises UnpackError, UnknownPackingError."""
    payload = bytes(payload)
    decompress = next((function for magic, function in _FORMATS.items() if payload.startswith(magic)), None)
    if decompress is None:
        raise UnknownPackingError(f"payload starts with {payload[:4].hex()}")
    size_bytes = int.from_bytes(payload[-4:], "little")
    if not 0 < size_bytes <= MAX_KERNEL_BYTES:
        raise UnpackError(f"its unpacked size is given as {size_bytes} bytes")
    try:
        unpacked = decompress(payload, size_bytes)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, lz4_block.LZ4BlockError, zstandard.ZstdError) as error:
        raise UnpackError(str(error)) from error
    if len(unpacked) != size_bytes:
        raise UnpackError(f"{len(unpacked)} bytes came out of it instead of {size_bytes}")
    return unpacked


def _gzip(payload: bytes, size_bytes: int) -> bytes:
    decompressor = zlib.decompressobj(16 + zlib.MAX_WBITS)
    # One byte more, so that the stream's checksum is reached and a stream that is too long is noticed.
    return _whole(decompressor.decompress(payload, size_bytes + 1), decompressor.eof)


def _bzip2(payload: bytes, size_bytes: int) -> bytes:
    decompressor = bz2.BZ2Decompressor()
    return _whole(decompressor.decompress(payload, size_bytes + 1), decompressor.eof)


def _lzma(payload: bytes, size_bytes: int) -> bytes:
    """XZ with any filter chain (Linux uses the x86 branch filter), and the older LZMA-alone format."""
    decompressor = lzma.LZMADecompressor()
    return _whole(decompressor.decompress(payload, size_bytes + 1), decompressor.eof)


def _zstd(payload: bytes, size_bytes: int) -> bytes:
    with zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAX_BYTES).stream_reader(payload) as reader:
        return reader.read(size_bytes + 1)


def _lz4_legacy(payload: bytes, size_bytes: int) -> bytes:
    """LZ4 frame format, "legacy frame": blocks of 8 MiB, each behind its packed size; the last may be shorter."""
    parts: list[bytes] = []
    offset, left, end = 4, size_bytes, len(payload) - 4
    while left > 0:
        block_bytes = int.from_bytes(payload[offset : offset + 4], "little")
        offset += 4
        if offset + block_bytes > end or not block_bytes:
            raise UnpackError("an LZ4 block ends after the payload")
        room = min(left, _LZ4_LEGACY_BLOCK_BYTES)
        part = lz4_block.decompress(memoryview(payload)[offset : offset + block_bytes], uncompressed_size=room)
        parts.append(part)
        offset += block_bytes
        left -= len(part)
        if len(part) != room:
            break
    return b"".join(parts)


def _whole(unpacked: bytes, ended: bool) -> bytes:
    if not ended:
        raise UnpackError("the packed data ends too early or goes on too long")
    return unpacked


_FORMATS: dict[bytes, Callable[[bytes, int], bytes]] = {
    b"\x1f\x8b": _gzip,
    b"BZh": _bzip2,
    b"\xfd7zXZ\x00": _lzma,
    b"\x5d\x00\x00": _lzma,
    b"\x28\xb5\x2f\xfd": _zstd,
    b"\x02\x21\x4c\x18": _lz4_legacy,
}
