"""Opens disks by path, with their backing files.

A disk whose format is not given is looked at: it is qcow2 when it begins with that format's magic number, else raw.  As
a guest writes a raw disk's first bytes itself, it could make the next start believe in a qcow2 image that names any file of
the host as its backing file; so a disk found raw by looking refuses exactly that write (see `RawBlock`), and a disk
declared raw is never looked at.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from ringfence.backends.api import Block
from ringfence.backends.block.hostfile import HostFile
from ringfence.backends.block.raw import QCOW_MAGIC, RawBlock
from ringfence.core.errors import ImageError, UserError
from ringfence.core.late import LateModule

if TYPE_CHECKING:
    from ringfence.backends.block import qcow2_block, qcow2_create, qcow2_format
else:  # many machines have raw images only
    qcow2_block = LateModule("ringfence.backends.block.qcow2_block")
    qcow2_create = LateModule("ringfence.backends.block.qcow2_create")
    qcow2_format = LateModule("ringfence.backends.block.qcow2_format")

FORMATS = ("raw", "qcow2")
_MAX_CHAIN = 64
_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def open_block(path: str | os.PathLike[str], readonly: bool = False, format: str | None = None) -> Block:
    """The disk at `path`, locked against conflicting use.

    Backing files are opened read-only.  Raises UserError (missing, no permission, a directory, in use, unknown format) or
    its kind ImageError (damaged, or using what is not supported).
    """
    return _open(path, readonly, format, [])


def temporary_overlay(base_path: str | os.PathLike[str], format: str | None = None, directory: str | None = None) -> Block:
    """A writable disk over a base that stays as it is; what is written goes to a file without a name and is lost on close or kill.

    The file is made in `directory`, by default the system's temporary directory (TMPDIR).
    """
    base = _open(base_path, True, format, [])
    try:
        file = HostFile.temporary(directory)
        try:
            qcow2_create.write_empty(file, max(base.size_bytes, 512))
            return qcow2_block.Qcow2Block(file, qcow2_format.read_header(file), base)
        except BaseException:
            file.close()
            raise
    except BaseException:
        base.close()
        raise


def create_overlay(
    path: str | os.PathLike[str], backing_path: str | os.PathLike[str], backing_format: str, size_bytes: int | None = None
) -> None:
    """A new qcow2 image at `path` that starts with the contents of `backing_path`, and its size unless one is given.

    A relative `backing_path` is relative to the working directory and stored relative to the image.  Raises UserError.
    """
    backing = _open(backing_path, True, backing_format, [])
    backing_bytes = backing.size_bytes
    backing.close()
    qcow2_create.create_overlay_file(path, backing_path, backing_format, backing_bytes if size_bytes is None else size_bytes)


def _open(path: str | os.PathLike[str], readonly: bool, format: str | None, chain: list[tuple[int, int]]) -> Block:
    if format is not None and format not in FORMATS:
        raise UserError(f"{format!r} is not a disk format.", f"Known formats: {', '.join(FORMATS)}.")
    file = HostFile.open(path, readonly)
    try:
        if file.identity in chain:
            raise ImageError(f"The disk image {file.name} is its own backing file.", "Recreate the overlay on the right base.")
        if len(chain) >= _MAX_CHAIN:
            raise ImageError(f"More than {_MAX_CHAIN} disk images back one another.", "Merge them with qemu-img convert.")
        if format == "raw" or (format is None and file.read(0, 4) != QCOW_MAGIC):
            return RawBlock(file, readonly, guard_probe=format is None)
        header = qcow2_format.read_header(file)
        backing = _open_backing(file, header, [*chain, file.identity])
        try:
            return qcow2_block.Qcow2Block(file, header, backing)
        except BaseException:
            if backing is not None:
                backing.close()
            raise
    except OSError as error:
        file.close()
        if isinstance(error, UserError):
            raise
        cause = f"The disk image {file.name} cannot be read: {error.strerror}."
        raise UserError(cause, "Check the file and the host's storage.") from error
    except BaseException:
        file.close()
        raise


def _open_backing(file: HostFile, header: qcow2_format.Header, chain: list[tuple[int, int]]) -> Block | None:
    name = header.backing_name
    if name is None:
        return None
    if name.startswith("file:"):
        name = name[len("file:") :]
    if _PROTOCOL.match(name):
        raise ImageError(f"{file.name} has {name!r} as its backing file; only files are supported.", "Convert it with qemu-img convert.")
    path = os.path.join(os.path.dirname(os.path.realpath(file.name)), name)
    try:
        return _open(path, True, header.backing_format, chain)
    except ImageError:
        raise
    except UserError as error:
        raise UserError(f"{file.name} needs its backing file. {error.cause}", error.remedy) from error
