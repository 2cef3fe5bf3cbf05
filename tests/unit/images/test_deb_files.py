"""Packages' files on their way into an initramfs."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from ringfence.core.errors import UserError
from ringfence.images import deb_files
from ringfence.images.cpio import CpioArchive


def tar(*members: tuple[str, bytes, dict[str, object]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data, fields in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for field, value in fields.items():
                setattr(member, field, value)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "place"),
    [("./", ""), (".", ""), ("./bin/sh", "usr/bin/sh"), ("./lib", "usr/lib"), ("./lib64/ld.so", "usr/lib64/ld.so")]
    + [("./library/x", "library/x"), ("./usr/bin/x", "usr/bin/x"), ("/sbin/x", "usr/sbin/x"), ("./etc/", "etc"), ("./.x", ".x")],
)
def test_merged(name: str, place: str) -> None:
    assert deb_files.merged(name) == place


def test_what_is_added() -> None:
    files = tar(
        ("./", b"", {"type": tarfile.DIRTYPE, "mode": 0o755, "mtime": 5}),
        ("./bin", b"", {"type": tarfile.DIRTYPE, "mode": 0o755, "mtime": 5}),
        ("./lib", b"", {"type": tarfile.SYMTYPE, "linkname": "usr/lib"}),
        ("./tmp", b"", {"type": tarfile.DIRTYPE, "mode": 0o1777, "mtime": 7}),
        ("./bin/a", b"program", {"mode": 0o4755, "mtime": 9}),
        ("./bin/b", b"", {"type": tarfile.LNKTYPE, "linkname": "./bin/a"}),
        ("./bin/c", b"", {"type": tarfile.SYMTYPE, "linkname": "a"}),
        ("./usr/share/doc/x", b"read me", {}),
    )
    wanted = CpioArchive()
    wanted.directory("tmp", 0o1777, 7)
    wanted.file("usr/bin/a", b"program", 0o4755)
    wanted.symlink("usr/bin/b", "/usr/bin/a")
    wanted.symlink("usr/bin/c", "a")
    archive, have = CpioArchive(), {"usr/bin"}
    assert deb_files.add_to(archive, Path("x.deb"), files, have) == 9
    assert archive.to_bytes() == wanted.to_bytes()
    assert have == {"usr/bin", "tmp"}


def test_a_damaged_archive() -> None:
    with pytest.raises(UserError, match="x.deb cannot be unpacked"):
        deb_files.add_to(CpioArchive(), Path("x.deb"), b"not a tar archive" * 100, set())
