"""Files and folders into the guest and out of it, as tar streams through its agent and its `tar`.

What comes out of a guest is not to be trusted: nothing is written outside of the target, and not through a link either.
"""

from __future__ import annotations

import io
import os
import posixpath
import stat
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from ringfence.core.errors import UserError

Progress = Callable[[int], None]
_PIECE_BYTES = 256 << 10
_KEPT_MODE = 0o777


class Command(Protocol):
    """A command in the guest, wherever its streams come from (`GuestProcess`, or one behind a control socket)."""

    def write(self, data: bytes) -> None: ...

    def close_input(self) -> None: ...

    def output(self) -> Iterator[bytes]: ...

    def errors(self) -> bytes:
        """All of it, once the output has ended."""

    def wait(self) -> int: ...


Start = Callable[[list[str]], Command]


class CopyError(UserError):
    """A copy could not be made."""


def put(start: Start, source: Path, target: str, progress: Progress = lambda done: None) -> None:
    """Copies a file or folder of the host to `target` in the guest; into it, where that is a folder.  Raises CopyError."""
    if not os.path.lexists(source):
        raise CopyError(f"There is no {source}.", "Check the path.")
    inside = _run(start, ["test", "-d", target])[0] == 0
    folder, name = (target, source.absolute().name) if inside else posixpath.split(target.rstrip("/") or "/")
    if not inside and target.endswith("/") and not source.is_dir():
        raise CopyError(f"There is no folder {target} in the guest.", "Make it first.")
    command = start(["tar", "-x", "-f", "-", "-C", folder or "."])
    gone = threading.Event()
    heard: list[bytes] = []

    def listen() -> None:
        heard.extend(command.output())
        gone.set()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        with tarfile.open(fileobj=_Sink(command, progress, gone), mode="w|", format=tarfile.PAX_FORMAT, bufsize=_PIECE_BYTES) as archive:
            archive.add(source, arcname=name, filter=_roots)
    except OSError as error:
        raise CopyError(f"{source} cannot be read: {error}.", "Check its permissions.") from error
    finally:
        command.close_input()
    listener.join()
    errors = command.errors()
    if (status := command.wait()) != 0:
        raise CopyError(f"The guest could not take {target}: {_told(errors, status)}.", "Check the path in the guest, and its room.")


def get(start: Start, source: str, target: Path, progress: Progress = lambda done: None) -> None:
    """Copies a file or folder of the guest to `target`; into it, where that is a folder.  Raises CopyError."""
    folder, name = posixpath.split(source.rstrip("/") or "/")
    inside = target.is_dir()
    place, own_name = (target, name or "root") if inside else (target.absolute().parent, target.absolute().name)
    if not place.is_dir():
        raise CopyError(f"There is no folder {place}.", "Make it first.")
    command = start(["tar", "-c", "-f", "-", "-C", folder or ".", "--", name or "."])
    command.close_input()
    written = 0
    folders: list[tuple[Path, int, float]] = []
    failure: Exception | None = None
    try:
        with tarfile.open(fileobj=_Source(command, progress), mode="r|", bufsize=_PIECE_BYTES) as archive:
            for member in archive:
                if _extract(archive, member, place, name or ".", own_name, folders):
                    written += 1
    except (tarfile.TarError, EOFError) as error:
        failure = error
    for path, mode, time in reversed(folders):  # nothing more goes into them
        path.chmod(mode)
        os.utime(path, (time, time))
    for _ in command.output():
        pass
    errors, status = command.errors(), command.wait()
    if status or failure is not None or not written:
        told = _told(errors, status) if status else str(failure or "nothing came")
        raise CopyError(f"{source} could not be copied out of the guest: {told}.", "Check the path in the guest.")


def _run(start: Start, words: list[str]) -> tuple[int, bytes]:
    command = start(words)
    command.close_input()
    output = b"".join(command.output())
    return command.wait(), output


def _told(errors: bytes, status: int) -> str:
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[0].rstrip(".") if lines else f"tar ended with status {status}"


def _roots(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """As root's, with the mode it has; sockets and the like stay here."""
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member if member.isreg() or member.isdir() or member.issym() or member.islnk() or member.isfifo() else None


class _Sink(io.RawIOBase):
    def __init__(self, command: Command, progress: Progress, gone: threading.Event) -> None:
        self._command, self._progress, self._gone = command, progress, gone
        self._done = 0

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if not self._gone.is_set():  # else it has failed, and says why
            self._command.write(bytes(data))
        self._done += len(data)
        self._progress(self._done)
        return len(data)


class _Source(io.RawIOBase):
    def __init__(self, command: Command, progress: Progress) -> None:
        self._pieces, self._progress = command.output(), progress
        self._left = b""
        self._done = 0

    def read(self, size: int = -1) -> bytes:
        parts, have = [self._left], len(self._left)
        while have < size and (piece := next(self._pieces, None)) is not None:
            parts.append(piece)
            have += len(piece)
        data = b"".join(parts)
        self._left = data[size:]
        self._done += min(size, have)
        self._progress(self._done)
        return data[:size]


def _extract(
    archive: tarfile.TarFile, member: tarfile.TarInfo, place: Path, root: str, own_name: str, folders: list[tuple[Path, int, float]]
) -> bool:
    """Makes one entry below `place`, its first name replaced; False for what is no file, folder or link.

    Raises CopyError where the guest's archive would lead somewhere else."""
    path = _host_path(place, member.name, root, own_name)
    mode = stat.S_IMODE(member.mode) & _KEPT_MODE
    try:
        if member.isdir():
            if path.is_symlink() or not path.is_dir():
                path.mkdir(mode=0o700)
            folders.append((path, mode, member.mtime))
            return True
        with suppress(FileNotFoundError):
            path.unlink()
        if member.issym():
            path.symlink_to(member.linkname)
            return True
        if member.islnk():
            os.link(_host_path(place, member.linkname, root, own_name), path, follow_symlinks=False)
            return True
        if not member.isreg():
            return False
        content = archive.extractfile(member)
        assert content is not None
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb", buffering=0) as file:
            while piece := content.read(_PIECE_BYTES):
                file.write(piece)
            os.fchmod(descriptor, mode)
        os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)
    except OSError as error:
        raise CopyError(f"{path} cannot be written: {error.strerror or error}.", "Check the folder, and its room.") from error
    return True


def _host_path(place: Path, name: str, root: str, own_name: str) -> Path:
    """Where an entry goes; its folders must be real ones."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if root != ".":
        if not parts or parts[0] != root:
            raise CopyError(f"The guest sent {name!r}, which was not asked for.", "Do not trust this guest.")
        parts = parts[1:]
    if ".." in parts or "\0" in name:
        raise CopyError(f"The guest sent {name!r}, which leads out of the folder.", "Do not trust this guest.")
    path = place
    for part in (own_name, *parts[:-1]) if parts else ():
        path = path / part
        if path.is_symlink() or not path.is_dir():
            raise CopyError(f"The guest sent {name!r}, whose folder is none.", "Do not trust this guest.")
    return path / (parts[-1] if parts else own_name)
