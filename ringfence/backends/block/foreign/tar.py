"""The members of a tar archive: names, and where their bytes are.  Nothing is ever written under a member's name.

Python's `tarfile` reads a long name into memory with the size that a header gives and parses extended headers with regular
expressions; here an archive is not trusted, so this module reads the little that appliances use, with bounds: POSIX ustar, pax
extended headers (path and size), GNU's long names and binary sizes.  Links and special files are refused.

Specification: POSIX.1-2017, `pax`, sections "ustar Interchange Format" and "pax Extended Header"; GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ringfence.backends.block.foreign.window import Window
from ringfence.core.errors import ImageError

BLOCK_BYTES = 512
# name, mode, user, group, size, time, checksum, type, link, magic, version, user, group, device (2), prefix
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_CHECKSUM_AT = slice(148, 156)
_MAX_MEMBERS = 1000
_MAX_EXTENDED_BYTES = 64 << 10
_FILES, _DIRECTORY, _PAX, _PAX_GLOBAL, _LONG_NAME = (b"0", b"\0", b"7"), b"5", b"x", b"g", b"L"


@dataclass(frozen=True)
class Member:
    name: str
    offset: int
    size_bytes: int


def members(archive: Window) -> list[Member]:
    """The regular files, in order.  Raises ImageError: damaged, a name that leads elsewhere or appears twice, links, too many."""
    found: dict[str, Member] = {}
    at = blocks = 0
    extended: dict[str, str] = {}
    while at + BLOCK_BYTES <= archive.size_bytes:
        data = archive.read(at, BLOCK_BYTES, "tar header")
        if not any(data):
            break
        blocks += 1
        if blocks > 4 * _MAX_MEMBERS or len(found) > _MAX_MEMBERS:
            raise ImageError(f"{archive.name} has more than {_MAX_MEMBERS} members.", "Give an archive with one appliance.")
        raw_name, _, _, _, raw_size, _, checksum, kind, _, magic, *_, prefix = _HEADER.unpack(data)
        data[_CHECKSUM_AT] = b" " * 8
        if _number(archive, checksum) != sum(data):
            raise archive.damaged(f"the tar header at {at:#x} has a wrong checksum")
        size_bytes = _number(archive, raw_size)
        at += BLOCK_BYTES
        if kind in (_PAX, _PAX_GLOBAL, _LONG_NAME):
            if size_bytes > _MAX_EXTENDED_BYTES:
                raise archive.damaged(f"the extended tar header at {at:#x} is too long ({size_bytes} bytes)")
            text = archive.read(at, size_bytes, "extended tar header")
            if kind == _LONG_NAME:
                extended["path"] = _text(text)
            elif kind == _PAX:
                extended.update(_pax(archive, text))
        else:
            if "size" in extended:
                size_bytes = _decimal(archive, extended["size"])
            name = extended.get("path") or _name(magic, raw_name, prefix)
            extended = {}
            archive.check(at, size_bytes, f"member {name[:100]!r}")
            if kind in _FILES:
                plain = _plain(archive, name)
                if plain in found:
                    raise archive.damaged(f"it holds two members named {plain[:100]!r}")
                found[plain] = Member(plain, at, size_bytes)
            elif kind != _DIRECTORY:
                raise ImageError(f"{archive.name} holds a link or special file ({name[:100]!r}).", "Give an archive of regular files.")
        at += -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES
    return list(found.values())


def _plain(archive: Window, name: str) -> str:
    """A relative path that stays where it is; nothing is written there, but such a name is not by accident."""
    parts = name.removeprefix("./").split("/")
    if "\\" in name or any(part in ("", ".", "..") for part in parts) or not name.isprintable():
        raise ImageError(f"{archive.name} holds a member whose name leads elsewhere ({name[:100]!r}).", "Do not trust this archive.")
    return "/".join(parts)


def _name(magic: bytes, name: bytes, prefix: bytes) -> str:
    if magic == b"ustar\0" and prefix[:1] != b"\0":
        return f"{_text(prefix)}/{_text(name)}"
    return _text(name)


def _text(data: bytes | bytearray) -> str:
    return bytes(data).split(b"\0", 1)[0].decode("utf-8", "replace")


def _number(archive: Window, field: bytes) -> int:
    """Octal digits, or with the highest bit set GNU's binary form."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if not all(digit in b"01234567" for digit in digits):
        raise archive.damaged("a number in a tar header is not one")
    return int(digits, 8)


def _decimal(archive: Window, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 19):
        raise archive.damaged("a size in an extended tar header is not a number")
    return int(text)


def _pax(archive: Window, data: bytearray) -> dict[str, str]:
    """Records of the form `LENGTH KEY=VALUE\\n`, where the length counts all of it."""
    found: dict[str, str] = {}
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 8)
        length = _decimal(archive, data[at : max(space, at)].decode("ascii", "replace"))
        record = data[space + 1 : at + length]
        if space < 0 or at + length > len(data) or length <= space + 1 - at or not record.endswith(b"\n") or b"=" not in record:
            raise archive.damaged("an extended tar header is not well formed")
        key, _, value = record[:-1].decode("utf-8", "replace").partition("=")
        if key in ("path", "size"):
            found[key] = value
        elif key.startswith("GNU.sparse"):
            raise ImageError(f"{archive.name} holds a sparse member, which is not supported.", "Make the archive without --sparse.")
        at += length
    return found
