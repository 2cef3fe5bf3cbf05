"""Archives of ours, as cpio(1) and the kernel's rules see them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ringfence.images.cpio import CpioArchive


def _archive() -> CpioArchive:
    archive = CpioArchive()
    archive.directory("etc", 0o700)
    archive.file("/etc/motd", "hello\n")
    archive.file("init", b"#!/bin/sh\n", 0o755)
    archive.symlink("bin", "usr/bin")
    archive.character_device("console", 5, 1)
    return archive


def test_is_made_of_aligned_entries_and_ends_in_a_trailer() -> None:
    data = _archive().to_bytes()
    assert len(data) % 4 == 0
    names, position = [], 0
    while position < len(data):
        assert data[position : position + 6] == b"070701"
        fields = [int(data[position + 6 + 8 * k : position + 14 + 8 * k], 16) for k in range(13)]
        name_end = position + 110 + fields[11]
        names.append(data[position + 110 : name_end - 1].decode())
        body = (name_end + 3) & ~3
        position = (body + fields[6] + 3) & ~3
    assert names == ["etc", "etc/motd", "init", "bin", "console", "TRAILER!!!"]


def test_same_input_same_bytes() -> None:
    assert _archive().to_bytes() == _archive().to_bytes()


@pytest.mark.parametrize("name", ["", "/", "a\0b"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        CpioArchive().file(name, b"")


def test_cpio_unpacks_it(tmp_path: Path) -> None:
    if shutil.which("cpio") is None:
        pytest.skip("cpio is not installed here")
    archive = CpioArchive()
    archive.directory("etc", 0o750)
    archive.file("etc/motd", "hello\n", 0o640)
    archive.symlink("link", "etc/motd")
    subprocess.run(["cpio", "-idm", "--quiet"], input=archive.to_bytes(), cwd=tmp_path, check=True, timeout=20)
    assert (tmp_path / "link").read_text() == "hello\n"
    assert (tmp_path / "etc" / "motd").stat().st_mode & 0o777 == 0o640
