"""Tiny disk images of other programs, made by hand from their specifications: small enough to be damaged thousands of times.

Each is an `Image`: its bytes, the disk that it holds, where its headers and tables are, and how to make checksums right again after
a change.
"""

from __future__ import annotations

import hashlib
import io
import random
import struct
import tarfile
import uuid
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

SECTOR = 512
MIB = 1 << 20
Put = Callable[[int, bytes], None]


@dataclass
class Image:
    data: bytes
    disk: bytes
    places: list[tuple[int, int]]  # offset and size of headers and tables
    mend: Callable[[bytearray, Put], None] = field(default=lambda data, put: None)
    text: tuple[int, int] | None = None  # offset and size of a text, which is mutated as such
    big_endian: bool = False


def noise(size_bytes: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


# --- VDI ---


def vdi(kind: int = 1, disk_bytes: int | None = None, entries: list[int] | None = None, parent: bytes = bytes(16)) -> Image:
    """Four blocks of 4 KiB: data, free, zero, data; the blocks lie in the file in the other order."""
    block = 4096
    entries = [1, 0xFFFFFFFF, 0xFFFFFFFE, 0] if entries is None else entries
    map_offset, data_offset = 1024, 4096
    header = struct.pack("<4sIIII256sII4II", b"\x7f\x10\xda\xbe", 0x10001, 400, kind, 0, b"", map_offset, data_offset, 0, 0, 0, 512, 0)
    header += struct.pack("<QIIII", 4 * block - 512 if disk_bytes is None else disk_bytes, block, 0, len(entries), 2)
    header += uuid.UUID(int=1).bytes_le + uuid.UUID(int=2).bytes_le + parent + bytes(16)
    data = bytearray(b"<<< made by hand >>>\n".ljust(64, b"\0") + header)
    data += bytes(map_offset - len(data)) + struct.pack(f"<{len(entries)}I", *entries)
    data += bytes(data_offset - len(data)) + noise(2 * block)
    blocks = noise(2 * block)
    disk = blocks[block:] + bytes(2 * block) + blocks[: block - 512]
    return Image(bytes(data), disk, [(64, len(header)), (72, 64), (320, 80), (map_offset, 16)])


# --- VHD ---


def _vhd_sum(data: bytes | bytearray) -> int:
    return ~sum(data) & 0xFFFFFFFF


def _vhd_footer(kind: int, disk_bytes: int, header_offset: int) -> bytes:
    footer = struct.pack(
        ">8sIIQI4sI4sQQIII", b"conectix", 2, 0x10000, header_offset, 0, b"win ", 1, b"Wi2k", disk_bytes, disk_bytes, 0, kind, 0
    )
    footer = footer.ljust(SECTOR, b"\0")
    return footer[:64] + struct.pack(">I", _vhd_sum(footer)) + footer[68:]


def vhd_fixed(kind: int = 2) -> Image:
    disk = noise(3 * SECTOR)
    at = len(disk)

    def mend(data: bytearray, put: Put) -> None:
        if len(data) >= at + SECTOR:
            put(at + 64, struct.pack(">I", _vhd_sum(data[at : at + 64] + data[at + 68 : at + SECTOR])))

    return Image(disk + _vhd_footer(kind, len(disk), (1 << 64) - 1), disk, [(at, 80)], mend, big_endian=True)


def vhd_dynamic(kind: int = 3, disk_bytes: int | None = None, entries: list[int] | None = None, block: int = 4096) -> Image:
    """Three blocks: the first with every other sector marked, the second free, the third full."""
    disk_bytes = 3 * block - SECTOR if disk_bytes is None else disk_bytes
    table, first = 1536, 2048
    second = first + SECTOR + block
    entries = [first // SECTOR, 0xFFFFFFFF, second // SECTOR] if entries is None else entries
    header = struct.pack(">8sQQIIII", b"cxsparse", (1 << 64) - 1, table, 0x10000, len(entries), block, 0).ljust(1024, b"\0")
    header = header[:36] + struct.pack(">I", _vhd_sum(header)) + header[40:]
    footer = _vhd_footer(kind, disk_bytes, 512)
    stored = noise(2 * block)
    data = footer + header + struct.pack(f">{len(entries)}I", *entries).ljust(SECTOR, b"\xff")
    data += b"\xaa".ljust(SECTOR, b"\0") + stored[:block] + b"\xff".ljust(SECTOR, b"\0") + stored[block:] + footer
    half = b"".join(stored[at : at + SECTOR] if at // SECTOR % 2 == 0 else bytes(SECTOR) for at in range(0, block, SECTOR))
    end = len(data) - SECTOR

    def mend(data: bytearray, put: Put) -> None:
        for at in (0, end):
            put(at + 64, struct.pack(">I", _vhd_sum(data[at : at + 64] + data[at + 68 : at + SECTOR])))
        put(512 + 36, struct.pack(">I", _vhd_sum(data[512 : 512 + 36] + data[512 + 40 : 1536])))

    places = [(0, 80), (end, 80), (512, 40), (table, 12), (first, 8)]
    return Image(data, (half + bytes(block) + stored[block:])[:disk_bytes], places, mend, big_endian=True)


# --- VHDX ---


def crc32c_by_bits(data: bytes | bytearray) -> int:
    """As RFC 3720 defines it, bit by bit; zeroes at the end are what makes it slow, so tables are checked with few of them."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


BAT, METADATA = uuid.UUID("2dc27766-f623-4200-9d64-115e9bfd4a08"), uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
ITEMS = {
    "parameters": uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b"),
    "size": uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8"),
    "id": uuid.UUID("beca12ab-b2e6-4523-93ef-c309e000c746"),
    "logical": uuid.UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f"),
    "physical": uuid.UUID("cda348c7-445d-4471-9cc9-e9885251c556"),
}


def vhdx(
    crc: Callable[[bytes | bytearray], int] = crc32c_by_bits,
    disk_bytes: int = 3 * MIB - SECTOR,
    flags: int = 0,
    log: bytes = bytes(16),
    states: tuple[int, ...] = (3 << 20 | 6, 0, 4 << 20 | 6),
    unknown_item: bool = False,
) -> Image:
    """Three blocks of 1 MiB: the first and the third with a little data; table, metadata, blocks and the log follow one another."""
    data = bytearray(6 * MIB)
    data[:8] = b"vhdxfile"
    for number, offset in enumerate((64 << 10, 128 << 10)):
        data[offset : offset + 80] = struct.pack(
            "<4sIQ16s16s16sHHIQ", b"head", 0, 7 + number, bytes(16), bytes(16), log, 0, 1, MIB, 5 * MIB
        )
    for offset in (192 << 10, 256 << 10):
        data[offset : offset + 16] = struct.pack("<4sIII", b"regi", 0, 2, 0)
        data[offset + 16 : offset + 48] = BAT.bytes_le + struct.pack("<QII", MIB, MIB, 1)
        data[offset + 48 : offset + 80] = METADATA.bytes_le + struct.pack("<QII", 2 * MIB, MIB, 1)
    data[MIB : MIB + 8 * len(states)] = struct.pack(f"<{len(states)}Q", *states)
    values = {
        "parameters": struct.pack("<II", MIB, flags),
        "size": struct.pack("<Q", disk_bytes),
        "id": bytes(16),
        "logical": struct.pack("<I", 512),
        "physical": struct.pack("<I", 4096),
    }
    table, at = 2 * MIB + 32, 64 << 10
    for name, value in values.items():
        data[table : table + 32] = ITEMS[name].bytes_le + struct.pack("<III4x", at, len(value), 4)
        data[2 * MIB + at : 2 * MIB + at + len(value)] = value
        table, at = table + 32, at + len(value)
    if unknown_item:
        data[table : table + 32] = uuid.UUID(int=9).bytes_le + struct.pack("<III4x", at, 4, 4)
    data[2 * MIB : 2 * MIB + 32] = struct.pack("<8sHH20x", b"metadata", 0, len(values) + unknown_item)
    data[3 * MIB + 4096 : 3 * MIB + 8192] = noise(4096)
    data[5 * MIB - 1024 : 5 * MIB] = noise(1024, 2)

    def mend(data: bytearray, put: Put) -> None:
        for offset, size_bytes in ((64 << 10, 4096), (128 << 10, 4096), (192 << 10, 65536), (256 << 10, 65536)):
            part = bytearray(data[offset : offset + size_bytes])
            part[4:8] = bytes(4)
            put(offset + 4, struct.pack("<I", crc(part)))

    def put(at: int, new: bytes) -> None:
        data[at : at + len(new)] = new

    mend(data, put)
    disk = bytes(data[3 * MIB : 4 * MIB]) + bytes(MIB) + bytes(data[4 * MIB : 5 * MIB])
    places = [(64 << 10, 80), (128 << 10, 80), (192 << 10, 80), (256 << 10, 80), (MIB, 24), (2 * MIB, 192), (2 * MIB + (64 << 10), 40)]
    return Image(bytes(data), disk[:disk_bytes], places, mend)


# --- VMDK ---

DESCRIPTOR = """# Disk DescriptorFile
version=1
CID=12345678
parentCID=ffffffff
createType="{kind}"

# Extent description
{extents}

# The Disk Data Base
#DDB
ddb.adapterType = "ide"
"""
_VMDK_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")


def vmdk_sparse(directory: list[int] | None = None, capacity: int = 3 * 8 - 1, text: str | None = None, table_at: int = 6) -> Image:
    """Three grains of 4 KiB: data, nothing, data; table and directory are behind one another."""
    text = DESCRIPTOR.format(kind="monolithicSparse", extents=f'RW {capacity} SPARSE "disk.vmdk"') if text is None else text
    header = _VMDK_HEADER.pack(b"KDMV", 1, 1, capacity, 8, 1, 4, 512, 0, 5, 16, 0, b"\n \r\n", 0)
    data = bytearray(header.ljust(SECTOR, b"\0") + text.encode().ljust(4 * SECTOR, b"\0"))
    directory = [table_at] if directory is None else directory
    data += struct.pack(f"<{len(directory)}I", *directory).ljust(SECTOR, b"\0")
    data += struct.pack("<III", 24, 0, 16).ljust(4 * SECTOR, b"\0")
    data += bytes(16 * SECTOR - len(data)) + noise(2 * 4096)
    stored = noise(2 * 4096)
    disk = stored[4096:] + bytes(4096) + stored[: 4096 - SECTOR]
    places = [(0, 79), (0, 79), (5 * SECTOR, 4), (6 * SECTOR, 12)]
    return Image(bytes(data), disk, places, text=(SECTOR, len(text)))


def vmdk_stream(capacity: int = 3 * 8 - 1) -> Image:
    """Three grains of 4 KiB, compressed, directory and footer at the end: data, nothing, data."""
    text = DESCRIPTOR.format(kind="streamOptimized", extents=f'RW {capacity} SPARSE "disk.vmdk"')

    def header(directory: int) -> bytes:
        return _VMDK_HEADER.pack(b"KDMV", 3, 0x30001, capacity, 8, 1, 2, 512, 0, directory, 8, 0, b"\n \r\n", 1).ljust(SECTOR, b"\0")

    data = bytearray(header((1 << 64) - 1) + text.encode().ljust(2 * SECTOR, b"\0")).ljust(8 * SECTOR, b"\0")
    stored = (noise(64) * 64, noise(4096, 3))
    grains, places = [0] * 512, [(0, 79)]
    for grain, content in zip((0, 2), stored, strict=True):
        packed = zlib.compress(content)
        grains[grain] = len(data) // SECTOR
        places.append((len(data), 24))
        data += struct.pack("<QI", grain * 8, len(packed)) + packed
        data += bytes(-len(data) % SECTOR)
    data += struct.pack("<QII", 4, 0, 1).ljust(SECTOR, b"\0")
    table = len(data)
    data += struct.pack("<512I", *grains) + struct.pack("<QII", 1, 0, 2).ljust(SECTOR, b"\0")
    directory = len(data)
    data += struct.pack("<I", table // SECTOR).ljust(SECTOR, b"\0") + struct.pack("<QII", 1, 0, 3).ljust(SECTOR, b"\0")
    footer = len(data)
    data += header(directory // SECTOR) + bytes(SECTOR)
    places += [(footer, 79), (footer, 79), (directory, 4), (table, 12)]
    return Image(bytes(data), stored[0] + bytes(4096) + stored[1][: 4096 - SECTOR], places, text=(SECTOR, len(text)))


def vmdk_flat(extents: str = 'RW 4 FLAT "disk-flat.vmdk" 0\nRW 2 ZERO\nRW 3 FLAT "disk-flat.vmdk" 4') -> Image:
    """A descriptor only; its extents are in `FLAT`, to be written to `disk-flat.vmdk` beside it."""
    text = DESCRIPTOR.format(kind="twoGbMaxExtentFlat", extents=extents).encode()
    disk = FLAT[: 4 * SECTOR] + bytes(2 * SECTOR) + FLAT[4 * SECTOR : 7 * SECTOR]
    return Image(text, disk, [(0, len(text))], text=(0, len(text)))


FLAT = noise(7 * SECTOR, 4)

# --- OVA ---

OVF = """<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
  <References>{files}</References>
  <DiskSection><Info>disks</Info>{disks}</DiskSection>
</Envelope>
"""


def ovf(*names: str, file: str = "", disk: str = "", before: str = "") -> str:
    """A descriptor with these disks; `file` and `disk` are further attributes of each."""
    files = "".join(f'<File ovf:id="file{n}" ovf:href="{name}" {file}/>' for n, name in enumerate(names))
    disks = "".join(f'<Disk ovf:diskId="disk{n}" ovf:fileRef="file{n}" ovf:capacity="1" {disk}/>' for n in range(len(names)))
    text = OVF.format(files=files, disks=disks)
    return text.replace("?>\n", "?>\n" + before, 1) if before else text


def manifest(parts: dict[str, bytes], method: str = "sha256") -> bytes:
    return "".join(f"{method.upper()}({name})= {hashlib.new(method, data).hexdigest()}\n" for name, data in parts.items()).encode()


def tar(parts: list[tuple[str | tarfile.TarInfo, bytes]], format: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, data in parts:
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def ova() -> Image:
    """A descriptor, a manifest, and a stream-optimised disk."""
    disk = vmdk_stream()
    parts = {"box.ovf": ovf("box-disk1.vmdk").encode(), "box-disk1.vmdk": disk.data}
    data = tar([("box.ovf", parts["box.ovf"]), ("box.mf", manifest(parts)), ("box-disk1.vmdk", parts["box-disk1.vmdk"])])
    text_bytes = len(parts["box.ovf"])
    sums = SECTOR + -(-text_bytes // SECTOR) * SECTOR
    third = sums + 2 * SECTOR
    headers = [0, sums, third]
    assert data[third + 257 : third + 262] == b"ustar"

    def mend(data: bytearray, put: Put) -> None:
        for at in headers:
            if at + SECTOR <= len(data):
                total = sum(data[at : at + 148]) + 8 * 32 + sum(data[at + 156 : at + SECTOR])
                put(at + 148, b"%06o\0 " % total)
        if data[0:7] == b"box.ovf" and data[sums : sums + 6] == b"box.mf":
            now = {"box.ovf": bytes(data[SECTOR : SECTOR + text_bytes]), "box-disk1.vmdk": bytes(data[third + SECTOR :][: len(disk.data)])}
            put(sums + SECTOR, manifest(now))

    places = [(at, 345) for at in headers] + [(sums + SECTOR, 170)] + [(third + SECTOR + at, size) for at, size in disk.places]
    return Image(data, disk.disk, places, mend, text=(SECTOR, text_bytes))
