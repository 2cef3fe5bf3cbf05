"""Opens an image for conversion: as the format that is given, or as what its magic number says.

Somebody may have put a magic number of his choice at the beginning of a disk.  What an image that was recognised by looking at it can
do is bounded: it may not name a backing file (qcow2 can name any file of the host), and other files are only those of a split
VMDK, by plain names in its own folder.  Who knows an overlay's origin gives its format, and its backing files are used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from ringfence.backends.block.foreign.ova import OvaBlock
from ringfence.backends.block.foreign.source import ForeignBlock, Source, check_size
from ringfence.backends.block.foreign.vdi import SIGNATURE as VDI_SIGNATURE
from ringfence.backends.block.foreign.vdi import SIGNATURE_OFFSET, VdiBlock
from ringfence.backends.block.foreign.vhd import VhdBlock, find_footer
from ringfence.backends.block.foreign.vhdx import SIGNATURE as VHDX_SIGNATURE
from ringfence.backends.block.foreign.vhdx import VhdxBlock
from ringfence.backends.block.foreign.vmdk import ESX_MAGIC, MAGIC, VmdkBlock
from ringfence.backends.block.foreign.vmdk_text import TITLE
from ringfence.backends.block.foreign.window import Window
from ringfence.backends.block.hostfile import HostFile
from ringfence.backends.block.open import open_block
from ringfence.backends.block.qcow2_block import Qcow2Block
from ringfence.backends.block.qcow2_format import read_header
from ringfence.backends.block.raw import QCOW_MAGIC, RawBlock
from ringfence.core.errors import ImageError, UserError

SOURCE_FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vhd", "vhdx", "ova")
_HEAD_BYTES = 512
_USTAR_AT = 257


class OpenedSource:
    """A source, the format it was opened as, the format's variant, and what whoever asked should be told."""

    def __init__(self, block: Source, format: str, kind: str = "", notes: tuple[str, ...] = ()) -> None:
        self.block = block
        self.format = format
        self.kind = kind
        self.notes = notes
        self.size_bytes = block.size_bytes

    def read(self, offset: int, buffer: memoryview) -> None:
        self.block.read(offset, buffer)

    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        return self.block.data_ranges(start, end)

    def close(self) -> None:
        self.block.close()


def detect(window: Window) -> str:
    """One of SOURCE_FORMATS; "raw" is what has none of the others' marks."""
    head = window.read(0, min(_HEAD_BYTES, window.size_bytes), "header")
    if head.startswith(QCOW_MAGIC):
        return "qcow2"
    if head[:4] in (MAGIC, ESX_MAGIC) or head.lstrip().startswith(TITLE):
        return "vmdk"
    if head[SIGNATURE_OFFSET : SIGNATURE_OFFSET + 4] == VDI_SIGNATURE:
        return "vdi"
    if head.startswith(VHDX_SIGNATURE):
        return "vhdx"
    if find_footer(window) is not None:
        return "vhd"
    if head[_USTAR_AT : _USTAR_AT + 5] == b"ustar":
        return "ova"
    return "raw"


def open_source(path: str | os.PathLike[str], format: str | None = None, member: str | None = None) -> OpenedSource:
    """The disk in the file at `path`, for reading; `member` chooses among the disks of an OVA.

    Raises UserError (missing, no permission, in use, an unknown format) or its kind ImageError (damaged, not supported).
    """
    if format is not None and format not in SOURCE_FORMATS:
        raise UserError(f"{format!r} is not a disk format that can be read.", f"Known formats: {', '.join(SOURCE_FORMATS)}.")
    file = HostFile.open(path, readonly=True)
    try:
        window = Window(file)
        found = format or detect(window)
        if member is not None and found != "ova":
            raise UserError(f"{file.name} is a disk of the format {found}, not an archive with several.", "Leave the disk's name out.")
        if found == "raw":
            raw = RawBlock(file, readonly=True)
            check_size(window, raw.size_bytes)
            return OpenedSource(raw, found)
        if found != "qcow2":
            foreign = _open_foreign(file, window, found, member)
            return OpenedSource(foreign, found, foreign.kind, foreign.notes)
        header = read_header(file)
        check_size(window, header.size_bytes)
        if header.backing_name is None:
            return OpenedSource(Qcow2Block(file, header), found)
        if format is None:
            raise ImageError(
                f"{file.name} is an overlay on the backing file {header.backing_name[:200]!r}, which may be any file of this host.",
                "If you know where the overlay comes from, give its format (qcow2); otherwise merge it first.",
            )
    except BaseException:
        file.close()
        raise
    file.close()
    block = open_block(path, readonly=True, format="qcow2")
    assert isinstance(block, Qcow2Block)
    return OpenedSource(block, "qcow2")


def _open_foreign(file: HostFile, window: Window, format: str, member: str | None) -> ForeignBlock:
    if format == "vmdk":
        return VmdkBlock(file, window)
    if format == "vdi":
        return VdiBlock(file, window)
    if format == "vhd":
        return VhdBlock(file, window)
    if format == "vhdx":
        return VhdxBlock(file, window)
    return OvaBlock(file, window, member)
