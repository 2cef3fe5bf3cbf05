"""Copies by tar streams, with this host's own `tar` in the guest's place, and with archives that a hostile guest could send."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ringfence.machine import files
from ringfence.machine.files import CopyError


class Local:
    """A command of this host's as `files.Command`."""

    def __init__(self, words: list[str]) -> None:
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
        except BrokenPipeError:
            return

    def close_input(self) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            return

    def output(self) -> Iterator[bytes]:
        assert self._process.stdout is not None
        while piece := self._process.stdout.read(1000):
            yield piece

    def errors(self) -> bytes:
        assert self._process.stderr is not None
        return self._process.stderr.read()

    def wait(self) -> int:
        return self._process.wait(10)


class Sent:
    """A guest whose tar sends these bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __call__(self, words: list[str]) -> Sent:
        return self

    def write(self, data: bytes) -> None:
        raise AssertionError

    def close_input(self) -> None:
        return

    def output(self) -> Iterator[bytes]:
        data, self._data = self._data, b""
        return iter([data] if data else [])

    def errors(self) -> bytes:
        return b""

    def wait(self) -> int:
        return 0


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "deep" / "deeper").mkdir(parents=True)
    (root / "deep" / "file").write_bytes(os.urandom(300_000))
    (root / "deep" / "file").chmod(0o741)
    (root / "empty").touch()
    (root / "a name with spaces\nand a newline").write_text("x")
    (root / "link").symlink_to("deep/file")
    (root / "dangling").symlink_to("/nowhere/at all")
    os.link(root / "deep" / "file", root / "hard")
    os.utime(root / "deep" / "file", (1_000_000_000, 1_000_000_000))
    (root / "deep" / "deeper").chmod(0o500)
    return root


def described(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        time = int(info.st_mtime) if path.is_file() and not path.is_symlink() else None
        mode = None if path.is_symlink() else info.st_mode
        found[str(path.relative_to(root))] = (mode, content, time, info.st_nlink if path.is_file() else None)
    return found


@pytest.mark.parametrize("way", ["put", "get"])
@pytest.mark.parametrize("into", [False, True])
def test_a_folder(tree: Path, tmp_path: Path, way: str, into: bool) -> None:
    """Into a folder that exists, or under a name of its own."""
    target = tmp_path / "target"
    if into:
        target.mkdir()
    seen: list[int] = []
    if way == "put":
        files.put(Local, tree, str(target), seen.append)
    else:
        files.get(Local, str(tree), target, seen.append)
    assert described(target / "tree" if into else target) == described(tree)
    assert seen[-1] >= 300_000 and seen == sorted(seen)


@pytest.mark.parametrize("way", ["put", "get"])
def test_a_file(tree: Path, tmp_path: Path, way: str) -> None:
    source, target = tree / "deep" / "file", tmp_path / "copy"
    for _ in range(2):  # over what is there, too
        if way == "put":
            files.put(Local, source, str(target))
        else:
            files.get(Local, str(source), target)
        assert target.read_bytes() == source.read_bytes() and target.stat().st_mode == source.stat().st_mode


@pytest.mark.parametrize(
    "copy",
    [
        lambda tmp: files.put(Local, tmp / "missing", str(tmp)),
        lambda tmp: files.put(Local, tmp, str(tmp / "no" / "such" / "folder")),
        lambda tmp: files.get(Local, str(tmp / "missing"), tmp),
        lambda tmp: files.get(Local, str(tmp), tmp / "no" / "such" / "folder"),
    ],
    ids=["no source", "no folder in the guest", "no source in the guest", "no folder"],
)
def test_what_cannot_be_copied_is_told(tmp_path: Path, copy: Callable[[Path], None]) -> None:
    with pytest.raises(CopyError) as error:
        copy(tmp_path)
    assert error.value.remedy


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def entry(name: str, type_: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = type_, link, mode
    return member


HOSTILE = {
    "upwards": [(entry("x", tarfile.DIRTYPE), b""), (entry("x/../../victim"), b"bad")],
    "absolute": [(entry("/etc/victim"), b"bad")],
    "another name": [(entry("y"), b"bad")],
    "through a link": [(entry("x", tarfile.DIRTYPE), b""), (entry("x/l", tarfile.SYMTYPE, "../.."), b""), (entry("x/l/victim"), b"bad")],
    "root is a link": [(entry("x", tarfile.SYMTYPE, ".."), b""), (entry("x/victim"), b"bad")],
    "hard link outside": [(entry("x", tarfile.DIRTYPE), b""), (entry("x/h", tarfile.LNKTYPE, "../victim"), b"")],
    "a file as a folder": [(entry("x"), b"file"), (entry("x/victim"), b"bad")],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_guest_reaches_nothing_else(tmp_path: Path, name: str) -> None:
    (tmp_path / "victim").write_text("good")
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(CopyError):
        files.get(Sent(archive(*HOSTILE[name])), "/srv/x", place)
    assert (tmp_path / "victim").read_text() == "good" and (tmp_path / "victim").stat().st_nlink == 1
    assert {path.name for path in tmp_path.iterdir()} == {"victim", "place"}


def test_a_file_that_is_a_link_here_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("good")
    (tmp_path / "copy").symlink_to("victim")
    files.get(Sent(archive((entry("x", mode=0o6755), b"new"))), "/srv/x", tmp_path / "copy")
    assert (tmp_path / "victim").read_text() == "good" and not (tmp_path / "copy").is_symlink()
    assert (tmp_path / "copy").stat().st_mode & 0o7777 == 0o755  # nothing of a guest's becomes set-user-ID here


@pytest.mark.parametrize(
    "data", [b"", b"no archive at all" * 100, archive((entry("x"), bytes(5000)))[:2000]], ids=["nothing", "noise", "cut"]
)
def test_streams_that_are_none(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(CopyError):
        files.get(Sent(data), "/srv/x", tmp_path)


def test_devices_are_left_out(tmp_path: Path) -> None:
    members = [(entry("x", tarfile.DIRTYPE, mode=0o755), b""), (entry("x/null", tarfile.CHRTYPE), b""), (entry("x/f"), b"1")]
    files.get(Sent(archive(*members)), "/srv/x", tmp_path)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["f"]
