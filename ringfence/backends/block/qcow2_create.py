"""New qcow2 images: version 3, clusters of 64 KiB, counts of 16 bits, empty or as an overlay on a backing file.

Specification: "Qcow2 Image File Format", QEMU project, section "Header".
"""

from __future__ import annotations

import os
import struct
from array import array

from ringfence.backends.block.hostfile import HostFile
from ringfence.backends.block.qcow2_format import (
    EXT_BACKING_FORMAT,
    EXT_END,
    HEADER_V2,
    HEADER_V3,
    MAX_BACKING_NAME_BYTES,
    MAX_L1_BYTES,
)
from ringfence.backends.block.qcow2_table import encode
from ringfence.backends.block.raw import QCOW_MAGIC
from ringfence.core.errors import UserError
from ringfence.core.units import TIB, format_size

_CLUSTER_BITS, _REFCOUNT_ORDER = 16, 4
_CLUSTER_BYTES = 1 << _CLUSTER_BITS
MAX_SIZE_BYTES = min(64 * TIB, (MAX_L1_BYTES // 8) << (2 * _CLUSTER_BITS - 3))


def write_empty(file: HostFile, size_bytes: int, backing_name: str | None = None, backing_format: str | None = None) -> None:
    """Makes an empty file an empty image, on stable storage when it returns."""
    if size_bytes <= 0 or size_bytes % 512 or size_bytes > MAX_SIZE_BYTES:
        raise UserError(f"A disk cannot have {size_bytes} bytes.", f"Choose a multiple of 512 up to {format_size(MAX_SIZE_BYTES)}.")
    backing = os.fsencode(backing_name) if backing_name else b""
    if len(backing) > MAX_BACKING_NAME_BYTES:
        raise UserError(f"The path {backing_name} is longer than {MAX_BACKING_NAME_BYTES} bytes.", "Move the base image to a shorter path.")
    extensions = b""
    if backing and backing_format:
        name = backing_format.encode()
        extensions += struct.pack(">II", EXT_BACKING_FORMAT, len(name)) + name + bytes(-len(name) % 8)
    extensions += struct.pack(">II", EXT_END, 0)
    header_bytes = HEADER_V2.size + HEADER_V3.size + 8
    l1_entries = -(-size_bytes >> 2 * _CLUSTER_BITS - 3)
    l1_clusters = -(-l1_entries * 8 >> _CLUSTER_BITS)
    used = 3 + l1_clusters  # header, refcount table, refcount block, L1
    counts = array("H", bytes(_CLUSTER_BYTES))
    counts[:used] = array("H", [1]) * used
    header = HEADER_V2.pack(
        QCOW_MAGIC, 3, header_bytes + len(extensions) if backing else 0, len(backing), _CLUSTER_BITS, size_bytes, 0,
        l1_entries, 3 * _CLUSTER_BYTES, _CLUSTER_BYTES, 1, 0, 0,
    )  # fmt: skip
    header += HEADER_V3.pack(0, 0, 0, _REFCOUNT_ORDER, header_bytes) + bytes(8)
    file.write(_CLUSTER_BYTES, struct.pack(">Q", 2 * _CLUSTER_BYTES))
    file.write(2 * _CLUSTER_BYTES, encode(counts, 16))
    file.write(3 * _CLUSTER_BYTES, bytes(l1_clusters * _CLUSTER_BYTES))
    file.sync()
    file.write(0, header + extensions + backing)
    file.sync()


def create(path: str | os.PathLike[str], size_bytes: int) -> None:
    """A new, empty image.  Raises UserError when the path exists, cannot be written, or the size is not possible."""
    _create(path, size_bytes, None, None)


def _create(path: str | os.PathLike[str], size_bytes: int, backing_name: str | None, backing_format: str | None) -> None:
    file = HostFile.create(path)
    try:
        write_empty(file, size_bytes, backing_name, backing_format)
    except OSError as error:
        os.unlink(path)
        cause = f"The disk image {os.fspath(path)} cannot be written: {error.strerror}."
        raise UserError(cause, "Make room, or choose another place.") from error
    except BaseException:
        os.unlink(path)
        raise
    finally:
        file.close()


def create_overlay_file(path: str | os.PathLike[str], backing_path: str | os.PathLike[str], backing_format: str, size_bytes: int) -> None:
    """See `open.create_overlay`, which checks the backing file."""
    name = os.fspath(backing_path)
    if not os.path.isabs(name):
        # a relative name in an image is relative to the image, so that both can move together
        name = os.path.relpath(name, os.path.dirname(os.path.abspath(path)))
    if ":" in name.split("/", 1)[0]:
        name = f"./{name}"  # or it would be taken for a protocol
    _create(path, size_bytes, name, backing_format)
