"""What every disk backend keeps, tried on all of them against a plain array of bytes."""

from __future__ import annotations

import errno
import itertools
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ringfence.backends.api import Block, VectorBlock
from ringfence.backends.block.open import create_overlay, open_block, temporary_overlay
from ringfence.backends.block.qcow2 import create
from tests.unit.backends.qemu import assert_clean, content, qemu_img

SIZE = 3 << 20 | 512 * 5  # not a whole number of clusters


@dataclass(frozen=True)
class Disk:
    path: Path
    format: str
    before: bytes


def _pattern(size_bytes: int = SIZE) -> bytes:
    return random.Random(7).randbytes(size_bytes)


def raw(folder: Path) -> Disk:
    path = folder / "disk.raw"
    path.write_bytes(_pattern())
    return Disk(path, "raw", _pattern())


def qcow2(folder: Path) -> Disk:
    create(folder / "disk.qcow2", SIZE)
    return Disk(folder / "disk.qcow2", "qcow2", bytes(SIZE))


def overlay_on_raw(folder: Path) -> Disk:
    base = raw(folder)
    create_overlay(folder / "over.qcow2", base.path, "raw")
    return Disk(folder / "over.qcow2", "qcow2", base.before)


def overlay_on_shorter_overlay(folder: Path) -> Disk:
    base = overlay_on_raw(folder)
    create_overlay(folder / "top.qcow2", base.path, "qcow2", size_bytes=SIZE + (1 << 20))
    return Disk(folder / "top.qcow2", "qcow2", base.before + bytes(1 << 20))


def _made_by_qemu(*options: str, compressed: bool = False, backed: bool = False) -> Callable[[Path], Disk]:
    def make(folder: Path) -> Disk:
        if not shutil.which("qemu-img"):
            pytest.skip("qemu-img is not installed")
        base = raw(folder)
        path = folder / "disk.qcow2"
        arguments = [argument for option in options for argument in ("-o", option)]
        if backed:
            qemu_img("create", "-f", "qcow2", *arguments, "-F", "raw", "-b", base.path, path)
        else:
            qemu_img("convert", "-O", "qcow2", *arguments, *(["-c"] if compressed else []), base.path, path)
        return Disk(path, "qcow2", base.before)

    make.__name__ = " ".join((*options, *["compressed"] * compressed, *["backed"] * backed))
    return make


KINDS: list[Callable[[Path], Disk]] = [
    raw,
    qcow2,
    overlay_on_raw,
    overlay_on_shorter_overlay,
    _made_by_qemu("compat=0.10"),
    _made_by_qemu("compat=0.10", backed=True),
    _made_by_qemu("compat=0.10", compressed=True),
    _made_by_qemu("cluster_size=512"),
    _made_by_qemu("cluster_size=512,refcount_bits=64", backed=True),
    _made_by_qemu("cluster_size=2M"),
    _made_by_qemu("cluster_size=2M", compressed=True),
    _made_by_qemu("refcount_bits=1"),
    _made_by_qemu("refcount_bits=2,cluster_size=4k", compressed=True),
    _made_by_qemu("refcount_bits=4", backed=True),
    _made_by_qemu("refcount_bits=8"),
    _made_by_qemu("refcount_bits=32,cluster_size=1k"),
    _made_by_qemu("refcount_bits=64", compressed=True),
    _made_by_qemu("compression_type=zstd", compressed=True),
    _made_by_qemu("lazy_refcounts=on", backed=True),
    _made_by_qemu("preallocation=metadata"),
    _made_by_qemu("preallocation=falloc"),
]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    made: Disk = request.param(tmp_path)
    return made


def read(block: Block, offset: int = 0, size_bytes: int | None = None) -> bytes:
    buffer = bytearray(block.size_bytes - offset if size_bytes is None else size_bytes)
    block.read(offset, memoryview(buffer))
    return bytes(buffer)


def vectors(block: Block) -> VectorBlock:
    assert isinstance(block, VectorBlock)
    return block


def cut(data: memoryview, draw: random.Random) -> list[memoryview]:
    """Pieces of any size, at times more than the host takes in one call."""
    most = draw.choice((7, 600, 5000, len(data)))
    edges = [0]
    while edges[-1] < len(data):
        edges.append(min(len(data), edges[-1] + draw.randint(1, most)))
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def change_at_random(block: Block, model: bytearray, seed: int, operations: int) -> None:
    """Reads, writes and zeroes; the contents of discarded ranges are taken over as they are afterwards."""
    draw = random.Random(seed)
    for _ in range(operations):
        size_bytes = min(draw.choice([512, 1024, 4096, 70 * 1024, 300 * 1024]), len(model))
        offset = draw.randrange((len(model) - size_bytes) // 512 + 1) * 512
        if draw.random() < 0.1:  # up to the very end
            offset = len(model) - size_bytes
        span = slice(offset, offset + size_bytes)
        match draw.choice(["write", "write", "write", "read", "read", "zeroes", "discard", "flush"]):
            case "write":
                data = draw.randbytes(512) * (size_bytes // 512)
                if draw.random() < 0.5:
                    block.write(offset, memoryview(data))
                else:
                    vectors(block).write_vector(offset, cut(memoryview(data), draw))
                model[span] = data
            case "read" if draw.random() < 0.5:
                buffer = bytearray(size_bytes)
                pieces = cut(memoryview(buffer), draw)
                assert vectors(block).read_vector(offset, pieces, wait=False) or vectors(block).read_vector(offset, pieces)
                assert buffer == model[span]
            case "read":
                assert read(block, offset, size_bytes) == model[span]
            case "zeroes":
                block.write_zeroes(offset, size_bytes, may_unmap=draw.random() < 0.5)
                model[span] = bytes(size_bytes)
            case "discard":
                block.discard(offset, size_bytes)
                now = read(block, offset, size_bytes)
                for start in range(0, size_bytes, 512):
                    sector = now[start : start + 512]
                    assert sector in (bytes(512), bytes(model[offset + start : offset + start + 512]))
                model[span] = now
            case "flush":
                block.flush()


def test_contents_size_and_sectors(disk: Disk) -> None:
    block = open_block(disk.path, readonly=True, format=disk.format)
    assert block.readonly and block.size_bytes == len(disk.before)
    assert read(block) == disk.before
    assert read(block, 65536 - 512, 1024) == disk.before[65536 - 512 : 65536 + 512]
    block.close()


def test_random_changes_survive_closing(disk: Disk, tmp_path: Path) -> None:
    model = bytearray(disk.before)
    for seed in range(2):
        block = open_block(disk.path, format=disk.format)
        change_at_random(block, model, seed, 100)
        assert read(block) == model
        block.close()
        if disk.format == "qcow2" and shutil.which("qemu-img"):
            assert_clean(disk.path)
            assert content(disk.path, "qcow2", tmp_path) == model


def test_a_throw_away_overlay_leaves_the_base_alone(disk: Disk) -> None:
    before = disk.path.read_bytes()
    model = bytearray(disk.before)
    block = temporary_overlay(disk.path, disk.format)
    change_at_random(block, model, 5, 100)
    assert read(block) == model
    block.close()
    assert disk.path.read_bytes() == before


def test_two_overlays_may_share_a_base(disk: Disk) -> None:
    one, two = temporary_overlay(disk.path, disk.format), temporary_overlay(disk.path, disk.format)
    one.write(0, memoryview(b"1" * 512))
    assert read(two, 0, 512) == disk.before[:512]
    one.close()
    two.close()


@pytest.mark.parametrize(("offset", "size_bytes"), [(0, 100), (3, 512), (1 << 40, 512), (-512, 512), (None, 1024)])
def test_ranges_outside_of_the_disk_are_io_errors(disk: Disk, offset: int | None, size_bytes: int) -> None:
    block = open_block(disk.path, format=disk.format)
    start = block.size_bytes - 512 if offset is None else offset
    operations = [
        lambda: block.read(start, memoryview(bytearray(size_bytes))),
        lambda: block.write(start, memoryview(bytes(size_bytes))),
        lambda: block.discard(start, size_bytes),
        lambda: block.write_zeroes(start, size_bytes, may_unmap=True),
    ]
    for operation in operations:
        with pytest.raises(OSError) as error:
            operation()
        assert error.value.errno == errno.EINVAL
    block.close()


def test_a_readonly_disk_refuses_changes(disk: Disk) -> None:
    before = disk.path.read_bytes()
    block = open_block(disk.path, readonly=True, format=disk.format)
    operations = [
        lambda: block.write(0, memoryview(bytes(512))),
        lambda: block.discard(0, 512),
        lambda: block.write_zeroes(0, 512, may_unmap=False),
    ]
    for operation in operations:
        with pytest.raises(OSError) as error:
            operation()
        assert error.value.errno == errno.EROFS
    block.flush()
    block.close()
    block.close()
    assert disk.path.read_bytes() == before
