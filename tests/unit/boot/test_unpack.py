from __future__ import annotations

import bz2
import contextlib
import lzma
import struct

import lz4.block
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.core.units import MIB
from ringfence.machine.boot.unpack import UnknownPackingError, UnpackError, unpack
from tests.unit.boot.images import gzip_payload

DATA = b"\x7fELF" + b"\xe8\x10\x00\x00\x00\x90some code " * 700_000  # more than one LZ4 block, and calls for the x86 filter
SIZE = struct.pack("<I", len(DATA))


def _lz4(data: bytes) -> bytes:
    blocks = [lz4.block.compress(data[at : at + 8 * MIB], store_size=False) for at in range(0, len(data), 8 * MIB)]
    return b"\x02\x21\x4c\x18" + b"".join(struct.pack("<I", len(block)) + block for block in blocks)


def _xz(data: bytes) -> bytes:
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 1}]
    return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters)


PAYLOADS = {
    "gzip": gzip_payload(DATA),
    "bzip2": bz2.compress(DATA, 1) + SIZE,
    "xz": _xz(DATA) + SIZE,
    "lzma": lzma.compress(DATA, lzma.FORMAT_ALONE, preset=1) + SIZE,
    "lz4": _lz4(DATA) + SIZE,
    "zstd": zstandard.ZstdCompressor(1).compress(DATA) + SIZE,
}


@pytest.mark.parametrize("packing", PAYLOADS)
def test_every_packing_gives_the_kernel_back(packing: str) -> None:
    assert len(DATA) > 8 * MIB
    assert unpack(PAYLOADS[packing]) == DATA


@pytest.mark.parametrize("packing", PAYLOADS)
def test_a_wrong_size_is_noticed(packing: str) -> None:
    for size in (len(DATA) - 1, len(DATA) + 1, 0, 0xFFFF_FFFF):
        with pytest.raises(UnpackError):
            unpack(PAYLOADS[packing][:-4] + struct.pack("<I", size))


@pytest.mark.parametrize("packing", PAYLOADS)
def test_a_cut_payload_is_noticed(packing: str) -> None:
    payload = PAYLOADS[packing]
    with pytest.raises(UnpackError):
        unpack(payload[: len(payload) // 2] + payload[-4:])


@pytest.mark.parametrize("payload", [b"", b"\x89LZO\0\r\n\x1a\n" + bytes(64), b"\x7fELF"])
def test_unknown_packing_is_told_apart_from_damage(payload: bytes) -> None:
    with pytest.raises(UnknownPackingError):
        unpack(payload)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0", b"\x5d\0\0", b"\x28\xb5\x2f\xfd", b"\x02\x21\x4c\x18"]),
    st.binary(max_size=200),
)
def test_rubbish_raises_nothing_else(magic: bytes, rest: bytes) -> None:
    with contextlib.suppress(UnpackError):
        unpack(magic + rest + struct.pack("<I", 1000))
