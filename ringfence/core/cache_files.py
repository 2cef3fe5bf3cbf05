"""Files in the user's cache: written at once, and read only if nobody but their owner could have written them.

A cache is never needed: what is missing, stale, damaged or not to be trusted is made again.
"""

from __future__ import annotations

import marshal
import os
import struct
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ringfence.core.trace import tracer

trace = tracer("stencils")

KEEP_DAYS = 30
# A guest that executes random bytes asks for new forms without end: the user's disk may not fill with them.
MAX_CACHE_BYTES = 64 << 20


CHECK_BYTES = 8


def check(data: bytes | memoryview) -> bytes:
    """A checksum against accidents; nobody else can write the file."""
    return struct.pack("<II", zlib.crc32(data), zlib.adler32(data))


def ours(*files: os.stat_result) -> bool:
    """Whether only this user (or root) can have written them."""
    return all(info.st_uid in (os.getuid(), 0) and not info.st_mode & 0o022 for info in files)


def open_private(path: Path) -> int | None:
    """A descriptor to read the file with; None when there is none, or none to trust."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    if ours(os.fstat(descriptor), os.stat(path.parent)):
        return descriptor
    os.close(descriptor)
    if trace:
        trace("%s can be written by others: ignored", path)
    return None


def read_cache(path: Path) -> Any:
    """What `write_cache` wrote; None when there is nothing, or nothing to trust."""
    descriptor = open_private(path)
    if descriptor is None:
        return None
    with open(descriptor, "rb") as file:
        data = file.read()
    try:
        if check(memoryview(data)[CHECK_BYTES:]) != data[:CHECK_BYTES]:
            raise ValueError("checksum")
        return marshal.loads(memoryview(data)[CHECK_BYTES:])
    except (ValueError, EOFError, TypeError) as error:
        if trace:
            trace("%s is damaged (%s): ignored", path, error)
        return None


def write_cache(path: Path, value: Any) -> bool:
    """Replaces the file at once; False where the folder cannot be written, which is not an error."""
    data = marshal.dumps(value)
    return replace_file(path, (check(data), data))


def replace_file(path: Path, parts: Iterable[bytes]) -> bool:
    """Writes the parts one behind the other; False where that cannot be, or would be too much."""
    parts = list(parts)
    if (size_bytes := sum(map(len, parts))) > MAX_CACHE_BYTES:
        if trace:
            trace("%s would grow to %d bytes: left as it is", path, size_bytes)
        return False
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.writelines(parts)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _prune(path)
    except OSError as error:
        if trace:
            trace("cache not written: %s", error)
        return False
    return True


def _prune(path: Path) -> None:
    """Removes the same kind of file of versions that nobody has used for a month."""
    oldest = path.stat().st_mtime - KEEP_DAYS * 86400
    for other in path.parent.glob(path.name.split("-")[0] + "-*.bin"):
        if other.stat().st_mtime < oldest:
            other.unlink(missing_ok=True)
