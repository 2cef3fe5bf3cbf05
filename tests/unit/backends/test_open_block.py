"""Opening disks: looking at formats, what users do wrong, locks, nothing left behind."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import ringfence
from ringfence.backends.block.hostfile import HostFile
from ringfence.backends.block.open import create_overlay, open_block, temporary_overlay
from ringfence.backends.block.qcow2 import Qcow2Block, create
from ringfence.backends.block.raw import RawBlock
from ringfence.core.errors import ImageError, UserError
from tests.conformance.test_block_backends import read
from tests.unit.backends.qemu import assert_clean

MAGIC = b"QFI\xfb"
NAMES_A_SECRET = MAGIC + bytes(508)


def test_looking_at_the_format(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(4096))
    create(tmp_path / "b", 1 << 20)
    a, b = open_block(tmp_path / "a"), open_block(tmp_path / "b")
    assert isinstance(a, RawBlock) and isinstance(b, Qcow2Block)
    b.close()
    declared = open_block(tmp_path / "b", format="raw")
    assert isinstance(declared, RawBlock) and read(declared, 0, 512)[:4] == MAGIC


def test_a_guest_cannot_make_its_probed_raw_disk_a_qcow2_image(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    probed = open_block(tmp_path / "disk")
    with pytest.raises(OSError) as error:
        probed.write(0, memoryview(NAMES_A_SECRET))
    assert error.value.errno == errno.EPERM
    probed.write(512, memoryview(NAMES_A_SECRET))
    probed.close()
    declared = open_block(tmp_path / "disk", format="raw")
    declared.write(0, memoryview(NAMES_A_SECRET))
    declared.close()


@pytest.mark.parametrize(
    ("name", "words"),
    [("missing", "does not exist"), ("folder", "directory"), ("pipe", "neither a regular file"), ("folder/\0", "cannot be opened")],
)
@pytest.mark.parametrize("readonly", [True, False])
@pytest.mark.timeout(10)
def test_what_is_no_disk(name: str, words: str, readonly: bool, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=words) as error:
        open_block(f"{tmp_path}/{name}", readonly)
    assert error.value.remedy


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(512))
    (tmp_path / "disk").chmod(0o400)
    with pytest.raises(UserError, match="may not write"):
        open_block(tmp_path / "disk")
    open_block(tmp_path / "disk", readonly=True).close()


def test_an_unknown_format(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(512))
    with pytest.raises(UserError, match="vmdk"):
        open_block(tmp_path / "disk", format="vmdk")
    with pytest.raises(ImageError, match="not a qcow2 image"):
        open_block(tmp_path / "disk", format="qcow2")


def test_a_missing_backing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(bytes(4096))
    create_overlay(tmp_path / "over", tmp_path / "base", "raw")
    (tmp_path / "base").unlink()
    with pytest.raises(UserError, match="over.*needs its backing file.*base.*does not exist"):
        open_block(tmp_path / "over")
    with pytest.raises(UserError, match="does not exist"):
        create_overlay(tmp_path / "other", tmp_path / "base", "raw")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", [b"nbd://host/disk", b'json:{"driver":"null-co"}', b"ssh:x"])
def test_backing_names_that_are_no_files(name: bytes, tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(bytes(4096))
    create_overlay(tmp_path / "over", tmp_path / ("b" * 1), "raw")
    image = bytearray((tmp_path / "over").read_bytes())
    offset = int.from_bytes(image[8:16], "big")
    image[offset : offset + len(name)] = name
    image[16:20] = len(name).to_bytes(4, "big")
    (tmp_path / "over").write_bytes(image)
    with pytest.raises(ImageError, match="only files"):
        open_block(tmp_path / "over")


def test_an_existing_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        create(tmp_path / "disk", 1 << 20)
    assert (tmp_path / "disk").read_text() == "precious"


@pytest.mark.parametrize("size_bytes", [0, -512, 513, 1 << 60])
def test_sizes_that_are_not_possible(size_bytes: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot have"):
        create(tmp_path / "disk", size_bytes)
    assert not (tmp_path / "disk").exists()


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_one_writer_or_many_readers(format: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    create(disk, 1 << 20)
    one, two = open_block(disk, True, format), open_block(disk, True, format)
    with pytest.raises(UserError, match="opened by another"):
        open_block(disk, False, format)
    one.close()
    two.close()
    writer = open_block(disk, False, format)
    for readonly in (True, False):
        with pytest.raises(UserError, match="opened"):
            open_block(disk, readonly, format)
    writer.close()
    open_block(disk, False, format).close()


def test_a_base_in_use_is_not_written(tmp_path: Path) -> None:
    create(tmp_path / "base", 1 << 20)
    overlay = temporary_overlay(tmp_path / "base")
    with pytest.raises(UserError, match="opened by another"):
        open_block(tmp_path / "base")
    overlay.close()
    open_block(tmp_path / "base").close()


@pytest.mark.skipif(not shutil.which("qemu-io"), reason="qemu-io is not installed")
def test_locks_hold_against_qemu(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    create(disk, 1 << 20)
    block = open_block(disk)
    result = subprocess.run(["qemu-io", "-c", "read 0 512", str(disk)], capture_output=True, text=True, timeout=60)
    assert result.returncode and "lock" in result.stderr
    block.close()
    with subprocess.Popen(["qemu-io", str(disk)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin and other.stdout
        other.stdin.write(b"write 0 512\n")
        other.stdin.flush()
        assert b"wrote" in other.stdout.readline() + other.stdout.readline()
        with pytest.raises(UserError, match="opened by another"):
            open_block(disk)
        other.stdin.close()


def test_nothing_is_left_of_a_throw_away_overlay_that_is_killed(tmp_path: Path) -> None:
    create(tmp_path / "base", 1 << 20)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    program = """
import os, signal, sys
from ringfence.backends.block.open import temporary_overlay
block = temporary_overlay(sys.argv[1])
block.write(0, memoryview(bytes(65536)))
block.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(ringfence.__file__).parents[1]), "TMPDIR": str(scratch)}
    result = subprocess.run([sys.executable, "-c", program, str(tmp_path / "base")], env=environment, timeout=60, check=False)
    assert result.returncode == -signal.SIGKILL
    assert not list(scratch.iterdir())


def test_a_temporary_file_where_the_host_has_no_unnamed_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: str, flags: int, mode: int = 0o777, **more: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not here")
        return real(path, flags, mode, **more)

    monkeypatch.setattr(os, "open", refuse)
    file = HostFile.temporary(str(tmp_path))
    file.write(0, b"data")
    assert file.read(0, 4) == b"data" and not list(tmp_path.iterdir())
    file.close()


def test_raw_disks_of_odd_size(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"x" * 700)
    block = open_block(tmp_path / "disk", format="raw")
    assert block.size_bytes == 1024
    assert read(block) == b"x" * 700 + bytes(324)
    block.close()


def test_raw_discard_gives_storage_back(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"x" * (1 << 20))
    block = open_block(tmp_path / "disk", format="raw")
    block.flush()
    before = (tmp_path / "disk").stat().st_blocks
    block.discard(0, 1 << 19)
    block.flush()
    if read(block, 0, 512) == b"x" * 512:
        pytest.skip("the file system of the temporary directory has no holes")
    assert (tmp_path / "disk").stat().st_blocks < before
    block.close()


def test_zeroes_without_help_from_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").write_bytes(b"x" * (3 << 20))
    monkeypatch.setattr(HostFile, "_fallocate", lambda *_: False)
    block = open_block(tmp_path / "disk", format="raw")
    block.write_zeroes(512, 2 << 20, may_unmap=True)
    block.discard(0, 512)
    assert read(block) == b"x" * 512 + bytes(2 << 20) + b"x" * ((1 << 20) - 512)
    block.close()


def test_short_transfers_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create(tmp_path / "disk", 1 << 20)
    pwrite, pwritev, preadv = os.pwrite, os.pwritev, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, memoryview(data)[:1000], at))
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, at: pwritev(fd, [memoryview(parts[0])[:700]], at))
    monkeypatch.setattr(os, "preadv", lambda fd, parts, at: preadv(fd, [parts[0][:900]], at))
    data = os.urandom(200 << 10)
    block = open_block(tmp_path / "disk")
    block.write(10 << 10, memoryview(data))
    assert read(block, 10 << 10, len(data)) == data
    block.close()
    block = open_block(tmp_path / "disk")
    assert read(block, 0, 300 << 10) == bytes(10 << 10) + data + bytes(90 << 10)
    block.close()


def test_a_full_host_disk_is_an_io_error_and_the_image_stays_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create(tmp_path / "disk", 8 << 20)
    block = open_block(tmp_path / "disk")
    block.write(0, memoryview(b"1" * (1 << 20)))
    block.flush()
    write_vector, write = HostFile.write_vector, HostFile.write

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(HostFile, "write_vector", full)
    with pytest.raises(OSError, match="No space"):
        block.write(2 << 20, memoryview(b"2" * (1 << 20)))
    monkeypatch.setattr(HostFile, "write_vector", write_vector)
    block.write(4 << 20, memoryview(b"3" * (1 << 20)))
    block.discard(0, 128 << 10)
    monkeypatch.setattr(HostFile, "write", full)
    with pytest.raises(OSError, match="No space"):
        block.flush()
    monkeypatch.setattr(HostFile, "write", write)
    block.write(2 << 20, memoryview(b"4" * (1 << 20)))
    block.close()
    if shutil.which("qemu-img"):
        assert_clean(tmp_path / "disk")
    block = open_block(tmp_path / "disk")
    assert read(block, 2 << 20, 3 << 20) == b"4" * (1 << 20) + bytes(1 << 20) + b"3" * (1 << 20)
    block.close()
