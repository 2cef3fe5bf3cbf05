"""Writer of cpio archives in the "newc" format, which Linux unpacks into its initramfs.

Specification: Linux Documentation/driver-api/early-userspace/buffer-format.rst.  Archives may be appended to each other,
each compressed or not; a file of a later archive replaces the same name of an earlier one.  Output depends on the input
only (no times of the host's, no host inode numbers), so that it can be cached by its content.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass, field

_ALIGN_BYTES = 4
_TRAILER = "TRAILER!!!"


@dataclass
class CpioArchive:
    """Add entries in the order in which they shall be made; parent directories come first.  All belong to root."""

    _parts: list[bytes] = field(default_factory=list)
    _inode: int = 0

    def directory(self, path: str, mode: int = 0o755, mtime_s: int = 0) -> None:
        self._entry(path, stat.S_IFDIR | mode, b"", links=2, mtime_s=mtime_s)

    def file(self, path: str, data: bytes | str, mode: int = 0o644) -> None:
        self._entry(path, stat.S_IFREG | mode, data.encode() if isinstance(data, str) else data)

    def symlink(self, path: str, target: str) -> None:
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        self._entry(path, stat.S_IFCHR | mode, b"", device=(major, minor))

    def to_bytes(self) -> bytes:
        """The whole archive with its trailer, a multiple of 4 bytes long so that another archive may follow."""
        return b"".join(self.parts())

    def parts(self) -> Sequence[bytes]:
        """The same, to be written one behind the other: a large archive is not copied once more."""
        return [*self._parts, _encode(_TRAILER, 0, 0, b"", 1, (0, 0))]

    def _entry(self, path: str, mode: int, data: bytes, links: int = 1, device: tuple[int, int] = (0, 0), mtime_s: int = 0) -> None:
        name = path.strip("/")
        if not name or "\0" in name:
            raise ValueError(f"{path!r} cannot be the name of a file in an archive")
        self._inode += 1
        self._parts.append(_encode(name, self._inode, mode, data, links, device, mtime_s))


def _encode(name: str, inode: int, mode: int, data: bytes, links: int, device: tuple[int, int], mtime_s: int = 0) -> bytes:
    raw = name.encode() + b"\0"
    # c_ino c_mode c_uid c_gid c_nlink c_mtime c_filesize c_maj c_min c_rmaj c_rmin c_namesize c_chksum
    numbers = (inode, mode, 0, 0, links, mtime_s, len(data), 0, 0, *device, len(raw), 0)
    header = b"070701" + b"".join(b"%08X" % n for n in numbers)
    return _pad(header + raw) + _pad(data)


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGN_BYTES)
