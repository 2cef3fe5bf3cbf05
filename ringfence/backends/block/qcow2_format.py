"""The qcow2 header: read, written, and what is refused at once.

Specification: "Qcow2 Image File Format", the public document of the QEMU project (docs/interop/qcow2), versions 2 and 3.
All integers are big-endian.  Limits on table sizes follow the implementation limits which that document states.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from ringfence.backends.block.hostfile import DamagedImage, HostFile
from ringfence.backends.block.raw import QCOW_MAGIC
from ringfence.core.errors import ImageError
from ringfence.core.units import MIB

HEADER_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
HEADER_V3 = struct.Struct(">QQQII")
L1_POSITION = struct.Struct(">IIQ")

DIRTY, CORRUPT, EXTERNAL_DATA, COMPRESSION_TYPE, EXTENDED_L2 = (1 << n for n in range(5))
_UNSUPPORTED = {2: "an external data file", 4: "extended L2 entries"}
BITMAPS_VALID = 1  # in the auto-clear features
INCOMPATIBLE_OFFSET, AUTOCLEAR_OFFSET, REFCOUNT_TABLE_OFFSET = 72, 88, 48

EXT_END, EXT_BACKING_FORMAT, EXT_FEATURE_NAMES, EXT_BITMAPS = 0, 0xE2792ACA, 0x6803F857, 0x23852875

OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00  # of a host cluster, in the entries of all mapping tables
MAX_CLUSTER_BITS, MIN_CLUSTER_BITS = 21, 9
MAX_L1_BYTES, MAX_REFCOUNT_TABLE_BYTES, MAX_SNAPSHOTS = 32 * MIB, 8 * MIB, 65536
MAX_BACKING_NAME_BYTES = 1023
_REMEDY_CONVERT = "Convert it: qemu-img convert -O qcow2 OLD NEW."


@dataclass(frozen=True)
class Bitmaps:
    """Where the persistent dirty bitmaps are; this package only keeps their clusters alive."""

    count: int
    directory_bytes: int
    directory_offset: int


@dataclass(frozen=True)
class Header:
    name: str
    version: int
    cluster_bits: int
    size_bytes: int
    l1_entries: int
    l1_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    refcount_bits: int
    snapshot_count: int
    snapshots_offset: int
    incompatible: int
    autoclear: int
    zstd: bool
    backing_name: str | None
    backing_format: str | None
    bitmaps: Bitmaps | None

    @property
    def cluster_bytes(self) -> int:
        return 1 << self.cluster_bits


def read_header(file: HostFile) -> Header:
    """Raises ImageError for anything that is not an image this package can use."""
    name, file_bytes = file.name, file.end()
    fixed = file.read(0, HEADER_V2.size + HEADER_V3.size + 8)
    (magic, version, backing_offset, backing_bytes, cluster_bits, size_bytes, crypt, l1_entries, l1_offset, table_offset, table_clusters,
     snapshots, snapshots_offset) = HEADER_V2.unpack_from(fixed)  # fmt: skip
    if magic != QCOW_MAGIC:
        raise ImageError(f"{name} is not a qcow2 image.", "Check the path, or give format=raw.")
    if file_bytes < HEADER_V2.size:
        raise DamagedImage(name, "its header is cut off")
    if version not in (2, 3):
        raise ImageError(f"{name} is a qcow image of version {version}; 2 and 3 are supported.", _REMEDY_CONVERT)
    if not MIN_CLUSTER_BITS <= cluster_bits <= MAX_CLUSTER_BITS:
        raise DamagedImage(name, f"clusters of 2^{cluster_bits} bytes are not possible")
    if crypt:
        raise ImageError(f"{name} is encrypted, which is not supported.", _REMEDY_CONVERT)
    cluster_bytes = 1 << cluster_bits
    incompatible = autoclear = compression = 0
    refcount_order, header_bytes = 4, HEADER_V2.size
    if version == 3:
        incompatible, _, autoclear, refcount_order, header_bytes = HEADER_V3.unpack_from(fixed, HEADER_V2.size)
        if header_bytes < HEADER_V2.size + HEADER_V3.size or header_bytes % 8 or header_bytes > cluster_bytes:
            raise DamagedImage(name, f"a header of {header_bytes} bytes is not possible")
        if refcount_order > 6:
            raise DamagedImage(name, f"reference counts of 2^{refcount_order} bits are not possible")
        compression = fixed[104] if header_bytes > 104 else 0
    head = file.read(0, min(cluster_bytes, file_bytes))
    extensions = _extensions(name, head, header_bytes, backing_offset)
    _check_features(name, incompatible, extensions.get(EXT_FEATURE_NAMES, b""))
    if bool(incompatible & COMPRESSION_TYPE) != bool(compression):
        raise DamagedImage(name, "its compression type contradicts its feature bits")
    if compression > 1:
        raise ImageError(f"{name} is compressed with an unknown method ({compression}).", _REMEDY_CONVERT)

    _check_area(name, "L1 table", l1_offset, l1_entries * 8, MAX_L1_BYTES, cluster_bytes, file_bytes)
    if l1_entries << (2 * cluster_bits - 3) < size_bytes:
        raise DamagedImage(name, "its L1 table is too small for its size")
    if not table_clusters:
        raise DamagedImage(name, "it has no refcount table")
    _check_area(name, "refcount table", table_offset, table_clusters << cluster_bits, MAX_REFCOUNT_TABLE_BYTES, cluster_bytes, file_bytes)
    if snapshots > MAX_SNAPSHOTS or (snapshots and (snapshots_offset % cluster_bytes or not 0 < snapshots_offset < file_bytes)):
        raise DamagedImage(name, "its snapshot table is not where it can be")
    bitmaps = None
    if EXT_BITMAPS in extensions:
        bitmaps = _bitmaps(name, extensions[EXT_BITMAPS], cluster_bytes, file_bytes)
    return Header(
        name=name, version=version, cluster_bits=cluster_bits, size_bytes=-(-size_bytes // 512) * 512, l1_entries=l1_entries,
        l1_offset=l1_offset, refcount_table_offset=table_offset, refcount_table_clusters=table_clusters, refcount_bits=1 << refcount_order,
        snapshot_count=snapshots, snapshots_offset=snapshots_offset, incompatible=incompatible, autoclear=autoclear, zstd=compression == 1,
        backing_name=_backing_name(name, head, header_bytes, backing_offset, backing_bytes),
        backing_format=extensions[EXT_BACKING_FORMAT].decode("ascii", "replace").lower() if EXT_BACKING_FORMAT in extensions else None,
        bitmaps=bitmaps,
    )  # fmt: skip


def _check_area(name: str, what: str, offset: int, size_bytes: int, max_bytes: int, cluster_bytes: int, file_bytes: int) -> None:
    if size_bytes > max_bytes:
        raise DamagedImage(name, f"its {what} is too large ({size_bytes} bytes)")
    if size_bytes and (offset % cluster_bytes or offset < cluster_bytes or offset + size_bytes > file_bytes):
        raise DamagedImage(name, f"its {what} is not where it can be ({offset:#x} + {size_bytes:#x})")


def _extensions(name: str, head: bytearray, offset: int, backing_offset: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    end = min(len(head), backing_offset) if backing_offset else len(head)
    while offset + 8 <= end:
        kind, size_bytes = struct.unpack_from(">II", head, offset)
        if kind == EXT_END:
            break
        offset += 8
        if offset + size_bytes > end:
            raise DamagedImage(name, f"header extension {kind:#x} is longer than the header")
        if kind in (EXT_BACKING_FORMAT, EXT_BITMAPS) and kind in found:
            raise DamagedImage(name, f"header extension {kind:#x} appears twice")
        found[kind] = bytes(head[offset : offset + size_bytes])
        offset += -(-size_bytes // 8) * 8
    return found


def _check_features(name: str, incompatible: int, feature_names: bytes) -> None:
    unsupported = incompatible & ~(DIRTY | CORRUPT | COMPRESSION_TYPE)
    if not unsupported:
        return
    bit = (unsupported & -unsupported).bit_length() - 1
    text = _UNSUPPORTED.get(bit, f"an unknown feature (bit {bit})")
    for at in range(0, len(feature_names) - 47, 48):
        if bit not in _UNSUPPORTED and feature_names[at] == 0 and feature_names[at + 1] == bit:
            text = f"the feature {feature_names[at + 2 : at + 48].rstrip(bytes(1)).decode('utf-8', 'replace')!r}"
    raise ImageError(f"{name} uses {text}, which is not supported.", _REMEDY_CONVERT)


def _backing_name(name: str, head: bytearray, header_bytes: int, offset: int, size_bytes: int) -> str | None:
    if not offset:
        return None
    if not 0 < size_bytes <= MAX_BACKING_NAME_BYTES or offset < header_bytes or offset + size_bytes > len(head):
        raise DamagedImage(name, "its backing file's name is not where it can be")
    text = bytes(head[offset : offset + size_bytes])
    if b"\0" in text:
        raise DamagedImage(name, "its backing file's name holds a null byte")
    return os.fsdecode(text)


def _bitmaps(name: str, data: bytes, cluster_bytes: int, file_bytes: int) -> Bitmaps:
    if len(data) != 24:
        raise DamagedImage(name, "its bitmaps extension has a wrong length")
    count, _, directory_bytes, directory_offset = struct.unpack(">IIQQ", data)
    if not 0 < count <= 65535:
        raise DamagedImage(name, f"it cannot hold {count} bitmaps")
    _check_area(name, "bitmap directory", directory_offset, directory_bytes, 64 * MIB, cluster_bytes, file_bytes)
    return Bitmaps(count, directory_bytes, directory_offset)
