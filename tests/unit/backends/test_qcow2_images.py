"""Images that another program made, and what becomes of them here."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from ringfence.backends.block.open import create_overlay, open_block
from ringfence.backends.block.qcow2 import create
from ringfence.core.errors import ImageError
from tests.conformance.test_block_backends import change_at_random, read
from tests.unit.backends.qemu import assert_clean, check, content, needs_qemu_img, qemu_img

pytestmark = needs_qemu_img
SIZE = 2 << 20


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.raw"
    path.write_bytes(random.Random(3).randbytes(SIZE // 2) + bytes(SIZE // 2))
    return path


@pytest.mark.parametrize("options", ["compat=0.10", "compat=1.1", "cluster_size=1k,refcount_bits=8"])
def test_internal_snapshots_stay_as_they_were(options: str, base: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    qemu_img("convert", "-O", "qcow2", "-o", options, base, image)
    qemu_img("snapshot", "-c", "first", image)
    model = bytearray(base.read_bytes())
    for round_number, name in enumerate(["second", "third"]):
        block = open_block(image)
        change_at_random(block, model, round_number, 60)
        block.close()
        assert_clean(image)
        qemu_img("snapshot", "-c", name, image)
    qemu_img("snapshot", "-d", "second", image)
    block = open_block(image)
    change_at_random(block, model, 9, 60)
    assert read(block) == model
    block.close()
    assert_clean(image)
    assert content(image, "qcow2", tmp_path) == model
    qemu_img("snapshot", "-a", "first", image)
    assert content(image, "qcow2", tmp_path) == base.read_bytes()


def test_bitmaps_are_given_up_with_the_first_change(base: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    qemu_img("convert", "-O", "qcow2", base, image)
    qemu_img("bitmap", "--add", image, "changes")
    open_block(image).close()
    assert "changes" in qemu_img("info", image)
    assert_clean(image)
    for dirty in (False, True):
        block = open_block(image)
        block.write(0, memoryview(b"x" * 65536 * 3))
        block.write_zeroes(65536, 65536, may_unmap=True)
        block.flush()
        if not dirty:
            block.close()
        else:
            block._file.close()  # type: ignore[attr-defined]  # as when killed: the next opening counts anew
            open_block(image).close()
        assert_clean(image)


def test_relative_backing_names_belong_to_the_image(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    create_overlay("sub/over.qcow2", "base.raw", "raw")
    monkeypatch.chdir(tmp_path / "elsewhere")
    block = open_block(tmp_path / "sub" / "over.qcow2")
    assert read(block) == base.read_bytes()
    block.close()
    assert "backing file: ../base.raw" in qemu_img("info", tmp_path / "sub" / "over.qcow2")
    assert content(tmp_path / "sub" / "over.qcow2", "qcow2", tmp_path) == base.read_bytes()


def test_a_colon_in_a_name_is_no_protocol(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base.rename(tmp_path / "nbd:base.raw")
    create_overlay("over.qcow2", "nbd:base.raw", "raw")
    block = open_block("over.qcow2")
    assert block.size_bytes == SIZE
    block.close()


def test_the_refcount_table_grows(tmp_path: Path) -> None:
    # clusters of 512 bytes with counts of 64 bits: one cluster of the table covers 64 * 64 clusters, which is 2 MiB
    image = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", "cluster_size=512,refcount_bits=64", image, "24M")
    data = random.Random(1).randbytes(1 << 20)
    block = open_block(image)
    for n in range(24):
        block.write(n << 20, memoryview(data))
        if n % 5 == 0:
            block.flush()
    block.close()
    assert_clean(image)
    assert content(image, "qcow2", tmp_path) == data * 24


def test_discarded_space_is_used_again(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    create(image, 64 << 20)
    block = open_block(image)
    for _ in range(10):
        block.write(0, memoryview(b"d" * (4 << 20)))
        block.flush()
        block.discard(0, 4 << 20)
        block.flush()
    block.close()
    assert_clean(image)
    assert image.stat().st_size < 10 << 20
    assert image.stat().st_blocks * 512 < 1 << 20  # given back to the host


def test_an_image_that_was_not_closed_is_counted_anew(base: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    qemu_img("convert", "-O", "qcow2", "-o", "lazy_refcounts=on", base, image)
    # QEMU keeps counts in memory with lazy counts; a process that aborts leaves them wrong and the dirty bit set
    subprocess.run(
        ["qemu-io", "-c", "write -P 9 1536k 200k", "-c", "flush", "-c", "abort", str(image)], capture_output=True, check=False, timeout=60
    )
    assert check(image).get("corruptions"), "the image should be in need of repair"
    block = open_block(image)
    assert read(block, 1536 << 10, 200 << 10) == b"\x09" * (200 << 10)
    block.close()
    assert_clean(image)


def test_a_leak_of_version_2_is_repaired(base: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    qemu_img("convert", "-O", "qcow2", "-o", "compat=0.10", base, image)
    with image.open("r+b") as file:  # count a cluster that nothing refers to
        file.seek(2 * 65536 + 40 * 2)
        file.write(b"\0\1")
        file.truncate(max(image.stat().st_size, 41 * 65536))
    assert check(image).get("leaks")
    open_block(image).close()
    assert_clean(image)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "data_file={}/data.raw"], "external data file"),
        (["-o", "extended_l2=on"], "extended L2"),
    ],
)
def test_unsupported_features_are_named(arguments: list[str], words: str, tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", *(argument.format(tmp_path) for argument in arguments), image, "1M")
    with pytest.raises(ImageError, match=words) as error:
        open_block(image)
    assert error.value.remedy


def test_what_we_make_is_an_image_to_qemu(base: Path, tmp_path: Path) -> None:
    create(tmp_path / "new.qcow2", 5 << 40)
    create_overlay(tmp_path / "over.qcow2", base, "raw", size_bytes=SIZE * 2)
    assert "5 TiB" in qemu_img("info", tmp_path / "new.qcow2")
    assert_clean(tmp_path / "new.qcow2")
    assert_clean(tmp_path / "over.qcow2")
    assert content(tmp_path / "over.qcow2", "qcow2", tmp_path) == base.read_bytes() + bytes(SIZE)
