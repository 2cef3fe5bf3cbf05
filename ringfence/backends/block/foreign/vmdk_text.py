"""The descriptor of a VMDK: text that names the kind of image and its extents.

A descriptor comes from whoever made the image.  So extents may only be named by the plain name of a file in the descriptor's own
folder, and not be reached through a symbolic link.

Specification: "Virtual Disk Format 5.0", VMware, 2011, section "The Descriptor File".
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from ringfence.backends.block.foreign.source import MAX_DISK_BYTES, differencing
from ringfence.backends.block.foreign.window import Window
from ringfence.backends.block.raw import SECTOR_BYTES
from ringfence.core.errors import ImageError

TITLE = b"# Disk DescriptorFile"
MAX_TEXT_BYTES = 1 << 20
MAX_EXTENTS = 512
_NO_PARENT = "ffffffff"
_EXTENT = re.compile(r'(RW|RDONLY|NOACCESS)[ \t]+(\d{1,19})[ \t]+([A-Z]{1,16})(?:[ \t]+"([^"]{1,255})"(?:[ \t]+(\d{1,19}))?)?')
_READABLE = ("FLAT", "VMFS", "SPARSE", "ZERO")


@dataclass(frozen=True)
class Extent:
    """Neighbouring bytes of the disk: in a file of the descriptor's folder (FLAT, SPARSE), or zeroes (ZERO, without a file)."""

    type: str
    size_bytes: int
    file_name: str
    offset: int


@dataclass(frozen=True)
class Descriptor:
    create_type: str
    extents: tuple[Extent, ...]


def parse_descriptor(window: Window, data: bytes | bytearray) -> Descriptor:
    """Raises ImageError for images with a parent, and for extents that are not supported or lie elsewhere."""
    text = bytes(data).split(b"\0", 1)[0]
    if not text.lstrip().startswith(TITLE):
        raise window.damaged("its descriptor does not begin as one")
    values: dict[str, str] = {}
    extents: list[Extent] = []
    total_bytes = 0
    for line in text.decode("utf-8", "replace").splitlines():
        line = line.strip()
        match = _EXTENT.fullmatch(line)
        if match:
            extents.append(_extent(window, match))
            total_bytes += extents[-1].size_bytes
            if len(extents) > MAX_EXTENTS or total_bytes > MAX_DISK_BYTES:
                raise ImageError(
                    f"{window.name} has more than {MAX_EXTENTS} extents, or more than 64 TiB.", "Convert it with its own program."
                )
        elif line.startswith(("RW ", "RDONLY ", "NOACCESS ")):
            raise window.damaged(f"the line {line[:80]!r} of its descriptor does not describe an extent")
        elif "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            values.setdefault(key.strip().lower(), value.strip().strip('"'))
    if values.get("parentcid", _NO_PARENT).lower() != _NO_PARENT:
        raise differencing(window, values.get("parentfilenamehint", "")[:200])
    if "encoding" in values and "encryption" in values:
        raise ImageError(f"{window.name} is encrypted, which is not supported.", "Decrypt it in the program that made it.")
    return Descriptor(values.get("createtype", "")[:64], tuple(extents))


def _extent(window: Window, match: re.Match[str]) -> Extent:
    access, sectors, kind, file_name, offset = match.groups()
    if access == "NOACCESS":
        raise ImageError(f"{window.name} has an extent that may not be read.", "Change its descriptor, or convert it with its own program.")
    if kind not in _READABLE:
        raise ImageError(f"{window.name} has an extent of the type {kind}, which is not supported.", "Convert it with `qemu-img convert`.")
    if (file_name is None) != (kind == "ZERO"):
        raise window.damaged("an extent has no file, or one too many")
    size_bytes = int(sectors) * SECTOR_BYTES
    return Extent("FLAT" if kind == "VMFS" else kind, size_bytes, file_name or "", int(offset or 0) * SECTOR_BYTES)


def extent_path(window: Window, file_name: str) -> str:
    """The file's path beside the descriptor.  Raises ImageError for every other place."""
    if "/" in file_name or "\\" in file_name or "\0" in file_name or file_name in (".", ".."):
        raise ImageError(
            f"{window.name} names the extent {file_name!r}; extents are only read from the folder of their descriptor.",
            "Put all files of the image into one folder, and name them without a path in the descriptor.",
        )
    path = os.path.join(os.path.dirname(os.path.abspath(window.name)), file_name)
    if os.path.islink(path):
        raise ImageError(f"The extent {file_name!r} of {window.name} is a symbolic link.", "Put the file itself into the folder.")
    return path
