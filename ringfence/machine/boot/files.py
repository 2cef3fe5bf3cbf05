"""What a user names as kernel and initrd, read into memory.

An initrd may be several archives: they are joined on 4-byte boundaries, and of two files of the same name the later one wins
(Linux Documentation/driver-api/early-userspace/buffer-format.rst).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ringfence.core.errors import ImageError, UserError

Source = str | os.PathLike[str] | bytes
"""A file's path, or its content."""

_NOT_KERNELS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"070701", "a cpio archive (an initrd, perhaps)"),
    (0, b"\x1f\x8b", "a gzip file (an initrd, or a kernel to be unpacked first)"),
    (0, b"\xfd7zXZ\x00", "an xz file (an initrd, or a kernel to be unpacked first)"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file (an initrd, or a kernel to be unpacked first)"),
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0, b"!<arch>", "a Debian package or library archive"),
    (56, b"ARM\x64", "a kernel for 64-bit ARM"),
    (56, b"RSC\x05", "a kernel for RISC-V"),
    (0x1FE, b"\x55\xaa", "a boot sector or disk image"),
)


def read(source: Source, what: str) -> bytes:
    """The content; raises UserError, in which `what` names the file's role ("kernel", "initrd")."""
    if isinstance(source, bytes):
        return source
    try:
        return Path(source).read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"There is no {what} file {os.fspath(source)!r}.", "Check the path.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"The {what} {os.fspath(source)!r} cannot be read: {error}.", "Check the path and its permissions.") from error


def display_name(source: Source, what: str) -> str:
    return f"The {what}" if isinstance(source, bytes) else f"{os.fspath(source)!r}"


def join_initrds(sources: Source | Sequence[Source] | None) -> bytes:
    """All initrds as one; empty when there is none."""
    if sources is None:
        return b""
    if isinstance(sources, str | os.PathLike | bytes):
        sources = [sources]
    joined = bytearray()
    for source in sources:
        joined += bytes(-len(joined) % 4) + read(source, "initrd")
    return bytes(joined)


def not_a_kernel(data: bytes, name: str) -> ImageError:
    """The error for a file that no loader knows, telling what it seems to be."""
    kind = "an empty file" if not data else "no kernel that is known here"
    kind = next((text for offset, magic, text in _NOT_KERNELS if data[offset : offset + len(magic)] == magic), kind)
    return ImageError(f"{name} is {kind}.", "Give a Linux kernel (bzImage or vmlinux), a Multiboot kernel, or another ELF kernel for x86.")
