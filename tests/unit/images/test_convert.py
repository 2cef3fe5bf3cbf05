"""Conversion of disk images, with qemu-img as the judge: what it made comes in bit by bit, what is made here it reads alike."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ringfence.backends.block.hostfile import HostFile
from ringfence.backends.block.qcow2_block import Qcow2Block
from ringfence.core.errors import ImageError, UserError
from ringfence.images.convert import PIECE_BYTES, TARGET_FORMATS, convert, disk_digest
from tests.unit.backends import foreign_images as images
from tests.unit.backends.qemu import assert_clean, needs_qemu_img, qemu_img

MIB = 1 << 20
QEMU_NAME = {"vhd": "vpc", "vmdk-stream": "vmdk"}
MADE_BY_QEMU = {
    "vmdk": [
        "subformat=" + kind
        for kind in ("monolithicSparse", "streamOptimized", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat")
    ]
    + ["subformat=monolithicSparse,zeroed_grain=on"],
    "vdi": ["", "static=on"],
    "vhd": ["subformat=dynamic,force_size=on", "subformat=fixed,force_size=on", "subformat=dynamic", "subformat=fixed"],
    "vhdx": [
        "subformat=dynamic",
        "subformat=fixed",
        "subformat=dynamic,block_size=1M",
        "subformat=dynamic,block_size=64M,block_state_zero=off",
    ],
    "qcow2": ["", "cluster_size=512", "compat=0.10", "compression_type=zstd", "preallocation=metadata"],
}
CASES = [(format, options) for format, kinds in MADE_BY_QEMU.items() for options in kinds]
# an odd number of sectors; less than a piece; whole pieces; neither whole sectors nor pieces
SIZES = [37 * MIB + 3 * 512, 512, 8 * MIB, 5 * MIB + 77]


def make_disk(path: Path, size_bytes: int, seed: int = 1) -> Path:
    """Random data, text that compresses, zeroes that are stored, and holes, in places of all alignments."""
    draw = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(size_bytes)
        for number in range(30):
            count = min(size_bytes, draw.choice([1, 512, 4096, 65536, 300_000, 1_500_000]))
            file.seek(draw.randrange(size_bytes - count + 1))
            file.write([draw.randbytes(count), b"text " * (count // 5), bytes(count)][number % 3])
        file.seek(size_bytes - 1)
        file.write(b"!")
    return path


def padded(path: Path) -> bytes:
    """A raw disk as machines see it: in whole sectors."""
    data = path.read_bytes()
    return data + bytes(-len(data) % 512)


def reference_digest(data: bytes) -> str:
    """The digest as the module's documentation defines it."""
    digest = hashlib.sha256(struct.pack(">Q", len(data)))
    for at in range(0, len(data), PIECE_BYTES):
        piece = data[at : at + PIECE_BYTES]
        if any(piece):
            digest.update(struct.pack(">Q", at) + piece)
    return digest.hexdigest()


@needs_qemu_img
@pytest.mark.parametrize(("format", "options"), CASES)
def test_what_qemu_made_comes_in_identically(format: str, options: str, tmp_path: Path) -> None:
    for number, size_bytes in enumerate(SIZES):
        raw, image = make_disk(tmp_path / f"{number}.raw", size_bytes, number), tmp_path / f"{number}.{format}"
        extra = ["-c"] if "zstd" in options else []
        qemu_img("convert", "-O", QEMU_NAME.get(format, format), *extra, *(["-o", options] if options else []), raw, image)
        by_qemu, ours = tmp_path / f"{number}.by-qemu", tmp_path / f"{number}.ours"
        qemu_img("convert", "-f", QEMU_NAME.get(format, format), "-O", "raw", image, by_qemu)
        done = convert(image, ours, "raw")
        data = ours.read_bytes()
        assert data == by_qemu.read_bytes()
        assert data[: os.path.getsize(raw)] == raw.read_bytes() and not any(data[os.path.getsize(raw) :])
        assert done.source_format == format and done.size_bytes == len(data)
        assert done.digest == reference_digest(data) == disk_digest(image, format) == disk_digest(ours, "raw")


@needs_qemu_img
@pytest.mark.parametrize("target_format", TARGET_FORMATS)
@pytest.mark.parametrize("size_bytes", [*SIZES, 33 * MIB])
def test_qemu_reads_what_is_made_here_identically(target_format: str, size_bytes: int, tmp_path: Path) -> None:
    raw, image = make_disk(tmp_path / "disk.raw", size_bytes), tmp_path / "made"
    done = convert(raw, image, target_format, source_format="raw")
    judge = QEMU_NAME.get(target_format, target_format)
    assert "identical" in qemu_img("compare", "-f", "raw", "-F", judge, raw, image)
    info = json.loads(qemu_img("info", "--output=json", "-f", judge, image))
    assert info["virtual-size"] == done.size_bytes == len(padded(raw))
    if target_format in ("qcow2", "vmdk", "vmdk-stream"):
        assert_clean(image)
    if judge == "vmdk":
        kind = {"vmdk": "monolithicSparse", "vmdk-stream": "streamOptimized"}[target_format]
        assert info["format-specific"]["data"]["create-type"] == kind
    if target_format == "qcow2":
        assert info["format-specific"]["data"]["compat"] == "1.1" and not info["format-specific"]["data"]["corrupt"]
    back = tmp_path / "back.raw"
    assert convert(image, back, "raw").digest == done.digest
    assert back.read_bytes() == padded(raw)
    assert sorted(os.listdir(tmp_path)) == ["back.raw", "disk.raw", "made"]


@needs_qemu_img
@pytest.mark.parametrize("target_format", ["vmdk", "vmdk-stream"])
def test_qemu_may_write_to_or_convert_a_vmdk_made_here(target_format: str, tmp_path: Path) -> None:
    raw, image = make_disk(tmp_path / "disk.raw", 40 * MIB), tmp_path / "made.vmdk"
    convert(raw, image, target_format, source_format="raw")
    if target_format == "vmdk":
        for path, format in ((raw, "raw"), (image, "vmdk")):
            subprocess.run(["qemu-io", "-f", format, "-c", "write -P 7 35M 3M", path], check=True, capture_output=True, timeout=60)
    again = tmp_path / "again.qcow2"
    qemu_img("convert", "-f", "vmdk", "-O", "qcow2", image, again)
    assert convert(again, tmp_path / "again.raw", "raw").digest == disk_digest(raw, "raw") == disk_digest(image)


@pytest.mark.parametrize("target_format", TARGET_FORMATS)
def test_zeroes_and_holes_take_no_room(target_format: str, tmp_path: Path) -> None:
    raw, image = tmp_path / "disk.raw", tmp_path / "made"
    with raw.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 30)
        file.write(bytes(16 * MIB) + b"data")
        file.seek((1 << 40) - 512)
        file.write(b"end")
    begun = time.monotonic()
    done = convert(raw, image, target_format, source_format="raw")
    assert time.monotonic() - begun < 20
    assert done.data_bytes == 2 * PIECE_BYTES and os.stat(image).st_blocks * 512 < 4 * MIB
    assert disk_digest(image, {"vmdk-stream": "vmdk"}.get(target_format, target_format)) == done.digest


def test_every_format_by_hand_to_every_target(tmp_path: Path) -> None:
    (tmp_path / "disk-flat.vmdk").write_bytes(images.FLAT)
    for make in (
        images.vdi,
        images.vhd_dynamic,
        images.vhd_fixed,
        images.vhdx,
        images.vmdk_sparse,
        images.vmdk_stream,
        images.vmdk_flat,
        images.ova,
    ):
        image = make()
        source = tmp_path / "source"
        source.write_bytes(image.data)
        for target_format in TARGET_FORMATS:
            target = tmp_path / "target"
            done = convert(source, target, target_format)
            assert done.digest == reference_digest(image.disk)
            target.unlink()
    assert done.notes == ("The disk is box-disk1.vmdk.", "Descriptor and disk have the SHA256 checksums of the manifest.")


def test_equal_disks_give_equal_images(tmp_path: Path) -> None:
    raw = make_disk(tmp_path / "disk.raw", 5 * MIB)
    for target_format in TARGET_FORMATS:
        made = []
        for number in range(2):
            (tmp_path / f"{number}").mkdir(exist_ok=True)
            path = tmp_path / f"{number}" / f"made.{target_format}"
            convert(raw, path, target_format, source_format="raw")
            made.append(path.read_bytes())
        assert made[0] == made[1]


# --- what goes wrong ---


def only_the_source(folder: Path) -> bool:
    return os.listdir(folder) == ["disk.raw"]


def test_the_target_must_be_free_and_known(tmp_path: Path) -> None:
    raw = make_disk(tmp_path / "disk.raw", MIB)
    before = raw.read_bytes()
    for target in (raw, tmp_path):
        with pytest.raises(UserError, match="exists already"):
            convert(raw, target, "qcow2")
    with pytest.raises(UserError, match="not a disk format that can be written"):
        convert(raw, tmp_path / "made", "vdi")
    with pytest.raises(UserError):
        convert(raw, tmp_path / "missing" / "made", "raw")
    with pytest.raises(UserError, match="does not exist"):
        convert(tmp_path / "nothing", tmp_path / "made", "raw")
    assert raw.read_bytes() == before and only_the_source(tmp_path)


@pytest.mark.parametrize("target_format", TARGET_FORMATS)
def test_no_room_leaves_nothing_behind(target_format: str, tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(random.Random(3).randbytes(8 * MIB))
    script = (
        "import resource, sys\n"
        "from ringfence.core.errors import UserError\n"
        "from ringfence.images.convert import convert\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))\n"
        "try:\n"
        "    convert(sys.argv[1], sys.argv[2], sys.argv[3], source_format='raw')\n"
        "except UserError as error:\n"
        "    print(error.cause)\n"
    )
    command = [sys.executable, "-c", script, str(raw), str(tmp_path / "made"), target_format]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "cannot be converted" in result.stdout and os.strerror(errno.EFBIG) in result.stdout, result
    assert only_the_source(tmp_path)


class Stopped(BaseException):
    """Not an Exception, as KeyboardInterrupt is not."""


@pytest.mark.parametrize("target_format", TARGET_FORMATS)
@pytest.mark.parametrize("label", ["converting", "verifying"])
def test_an_interruption_leaves_nothing_behind(target_format: str, label: str, tmp_path: Path) -> None:
    raw = make_disk(tmp_path / "disk.raw", 37 * MIB)

    def report(now: str, done: int, total: int) -> None:
        if now == label and done:
            raise Stopped

    with pytest.raises(Stopped):
        convert(raw, tmp_path / "made", target_format, source_format="raw", on_progress=report)
    assert only_the_source(tmp_path)


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(random.Random(3).randbytes(64 * MIB))
    script = (
        "import sys\n"
        "from ringfence.images.convert import convert\n"
        "convert(sys.argv[1], sys.argv[2], 'vmdk-stream', source_format='raw', on_progress=lambda *now: print(*now, flush=True))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(raw), str(tmp_path / "made")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline().startswith("converting")
    assert len(os.listdir(tmp_path)) == 2
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT and "KeyboardInterrupt" in errors
    assert only_the_source(tmp_path)


def test_a_result_that_reads_back_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(random.Random(3).randbytes(8 * MIB))
    right = HostFile.write

    def wrong(self: HostFile, offset: int, data: memoryview) -> None:
        if len(data) > MIB:
            data = memoryview(bytes(data[:-1]) + bytes([data[-1] ^ 1]))
        right(self, offset, data)

    monkeypatch.setattr(HostFile, "write", wrong)
    for target_format in ("raw", "vmdk"):
        with pytest.raises(ImageError, match="does not read back"):
            convert(raw, tmp_path / "made", target_format, source_format="raw")
        assert only_the_source(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(Qcow2Block, "write", lambda self, offset, data: None)
    with pytest.raises(ImageError, match="does not read back"):
        convert(raw, tmp_path / "made", "qcow2", source_format="raw")
    assert only_the_source(tmp_path)


def test_a_target_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    raw, target = make_disk(tmp_path / "disk.raw", MIB), tmp_path / "made"

    def report(label: str, done: int, total: int) -> None:
        target.write_text("somebody's")

    with pytest.raises(UserError, match="exists already"):
        convert(raw, target, "raw", source_format="raw", on_progress=report)
    assert target.read_text() == "somebody's" and sorted(os.listdir(tmp_path)) == ["disk.raw", "made"]


def test_disks_too_large_for_a_target_are_refused(tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    with raw.open("wb") as file:
        file.truncate(3 << 40)
    with pytest.raises(UserError, match="ends before 2 TiB"):
        convert(raw, tmp_path / "made", "vmdk", source_format="raw")
    assert only_the_source(tmp_path)


def test_progress_rises_to_the_end(tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(random.Random(3).randbytes(10 * MIB))
    seen: list[tuple[str, int, int]] = []
    convert(raw, tmp_path / "made", "qcow2", source_format="raw", on_progress=lambda *now: seen.append(now))
    for label in ("converting", "verifying"):
        done = [now[1] for now in seen if now[0] == label]
        assert done == sorted(done) and done[-1] == 10 and len(done) >= 3
    assert {now[2] for now in seen} == {10}
