"""Damaged images: each gives an ImageError at opening, an input/output error, or data; nothing else, and soon."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ringfence.backends.block.open import create_overlay, open_block
from ringfence.backends.block.qcow2 import create
from ringfence.core.errors import ImageError, UserError
from tests.unit.backends.qemu import needs_qemu_img, qemu_img

SIZE = 256 << 10
MUTATIONS = 1000
SLOWEST_S = 20.0


@pytest.fixture(params=["plain", "compressed and snapshot", "small clusters, version 2"])
def seed_image(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    image, raw = tmp_path / "disk.qcow2", tmp_path / "disk.raw"
    raw.write_bytes(random.Random(2).randbytes(SIZE // 4) * 2 + bytes(SIZE // 2))
    match request.param:
        case "plain":
            qemu_img("convert", "-O", "qcow2", "-o", "cluster_size=4k", raw, image)
        case "compressed and snapshot":
            qemu_img("convert", "-c", "-O", "qcow2", "-o", "cluster_size=4k,lazy_refcounts=on", raw, image)
            qemu_img("snapshot", "-c", "one", image)
            qemu_img("bitmap", "--add", image, "changes")
        case _:
            qemu_img("convert", "-O", "qcow2", "-o", "compat=0.10,cluster_size=512", raw, image)
    return image.read_bytes()


def tables(image: bytes) -> list[tuple[int, int]]:
    """Where the header and the tables are: offset and size."""
    cluster_bits, l1_entries, l1_offset, table_offset = *struct.unpack_from(">I12xI", image, 20), *struct.unpack_from(">QQ", image, 40)
    found = [(0, 120), (0, 120), (l1_offset, l1_entries * 8), (table_offset, 64)]
    for (entry,) in struct.iter_unpack(">Q", image[l1_offset : l1_offset + l1_entries * 8]):
        if entry:
            found.append((entry & 0x00FF_FFFF_FFFF_FE00, 1 << cluster_bits))
    found.append((struct.unpack_from(">Q", image, table_offset)[0], 1 << cluster_bits))
    (snapshots_offset,) = struct.unpack_from(">Q", image, 64)
    return [*found, (snapshots_offset, 60)] if snapshots_offset else found


def mutate(image: bytes, places: list[tuple[int, int]], draw: random.Random) -> bytes:
    changed = bytearray(image)
    for _ in range(draw.randrange(1, 4)):
        offset, size_bytes = draw.choice(places)
        at = offset + draw.randrange(size_bytes)
        match draw.randrange(6):
            case 0:
                changed[at] ^= 1 << draw.randrange(8)
            case 1:
                changed[at] = draw.randrange(256)
            case 2:
                at &= ~7
                changed[at : at + 8] = draw.choice([bytes(8), b"\xff" * 8, draw.randbytes(8), struct.pack(">Q", draw.randrange(1 << 20))])
            case 3:
                at &= ~7
                value = struct.pack(">Q", draw.choice([0, 1 << 62, 1 << 63]) | draw.randrange(len(image)) & ~511)
                changed[at : at + 8] = value
            case 4:
                at &= ~3
                changed[at : at + 4] = draw.choice([b"\x7f\xff\xff\xff", b"\0\0\0\1", draw.randbytes(4)])
            case _:
                if draw.random() < 0.1:
                    del changed[draw.randrange(len(changed)) :]
                    break
    return bytes(changed)


def use(path: Path, readonly: bool, draw: random.Random) -> None:
    try:
        block = open_block(path, readonly=readonly, format="qcow2")
    except UserError:
        return
    buffer = memoryview(bytearray(64 << 10))

    def attempt(operation: Callable[[], None]) -> None:
        try:
            operation()
        except OSError:
            return

    try:
        last = max(0, min(block.size_bytes, 1 << 40) - len(buffer)) // 512
        for offset in (0, 128 << 10, draw.randint(0, last) * 512):
            attempt(lambda at=offset: block.read(at, buffer))  # type: ignore[misc]
            if not readonly:
                attempt(lambda at=offset: block.write(at, buffer[: 12 << 10]))  # type: ignore[misc]
                attempt(lambda at=offset: block.write_zeroes(at, 12 << 10, True))  # type: ignore[misc]
                attempt(lambda at=offset: block.discard(at, 12 << 10))  # type: ignore[misc]
                attempt(block.flush)
    finally:
        attempt(block.close)


@needs_qemu_img
def test_mutated_images(seed_image: bytes, tmp_path: Path) -> None:
    draw = random.Random(1)
    places = tables(seed_image)
    path = tmp_path / "mutated.qcow2"
    begin = time.monotonic()
    for number in range(MUTATIONS):
        path.write_bytes(mutate(seed_image, places, draw))
        use(path, number % 2 == 0, draw)
        assert path.stat().st_size < 64 << 20
        assert time.monotonic() - begin < SLOWEST_S * 5, f"mutation {number}"


def header(**changes: int) -> bytes:
    """A version 3 header for 1 GiB with the tables in clusters 1 to 3."""
    fields = {
        "magic": 0x514649FB, "version": 3, "backing_offset": 0, "backing_bytes": 0, "cluster_bits": 16, "size": 1 << 30, "crypt": 0,
        "l1_entries": 2, "l1_offset": 3 << 16, "table_offset": 1 << 16, "table_clusters": 1, "snapshots": 0, "snapshots_offset": 0,
        "incompatible": 0, "compatible": 0, "autoclear": 0, "refcount_order": 4, "header_bytes": 104,
    }  # fmt: skip
    assert changes.keys() <= fields.keys()
    return struct.pack(">IIQIIQIIQQIIQQQQII", *(fields | changes).values())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 4}, "version 4"),
        ({"cluster_bits": 8}, "clusters of"),
        ({"cluster_bits": 22}, "clusters of"),
        ({"crypt": 1}, "encrypted"),
        ({"l1_entries": 1}, "too small"),
        ({"l1_entries": 1 << 31}, "L1 table is too large"),
        ({"l1_offset": 3 << 16 | 512}, "L1 table is not where"),
        ({"l1_offset": 1 << 60}, "L1 table is not where"),
        ({"l1_offset": 1 << 16}, "overlaps"),
        ({"l1_offset": 0}, "L1 table is not where"),
        ({"table_offset": 0}, "refcount table is not where"),
        ({"table_clusters": 0}, "no refcount table"),
        ({"table_clusters": 1 << 20}, "refcount table is too large"),
        ({"snapshots": 1 << 20}, "snapshot table"),
        ({"snapshots": 1, "snapshots_offset": 7}, "snapshot table"),
        ({"size": 1 << 62}, "too small"),
        ({"incompatible": 1 << 40}, "unknown feature .bit 40"),
        ({"incompatible": 1 << 2}, "external data file"),
        ({"incompatible": 1 << 3}, "compression type"),
        ({"refcount_order": 7}, "reference counts"),
        ({"header_bytes": 100}, "header of 100"),
        ({"header_bytes": 1 << 31}, "header of"),
        ({"backing_offset": 1 << 40, "backing_bytes": 5}, "backing file's name"),
        ({"backing_offset": 200, "backing_bytes": 5000}, "backing file's name"),
        ({"backing_offset": 200, "backing_bytes": 4}, "null byte"),
    ],
)
def test_impossible_headers_say_what_is_wrong(changes: dict[str, int], words: str, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    path.write_bytes(header(**changes).ljust(4 << 16, b"\0"))
    with pytest.raises(ImageError, match=words) as error:
        open_block(path)
    assert str(path) in error.value.cause and error.value.remedy


def test_the_unchanged_header_is_good(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    path.write_bytes(header().ljust(4 << 16, b"\0"))
    open_block(path, readonly=True).close()


def test_a_corrupt_mark_forbids_writing_only(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    path.write_bytes(header(incompatible=2).ljust(4 << 16, b"\0"))
    open_block(path, readonly=True).close()
    with pytest.raises(ImageError, match="corrupt"):
        open_block(path)


def test_data_that_points_to_a_table_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    create(path, 1 << 20)
    block = open_block(path)
    block.write(0, memoryview(bytes(65536)))
    block.close()
    image = bytearray(path.read_bytes())
    (l2_offset,) = struct.unpack_from(">Q", image, 3 << 16)
    l2_offset &= 0x00FF_FFFF_FFFF_FE00
    before = bytes(image[l2_offset + 8 :][: 65536 - 8])
    for target in (0, 1 << 16, 2 << 16, 3 << 16, l2_offset):
        struct.pack_into(">Q", image, l2_offset, 1 << 63 | target)
        path.write_bytes(image)
        block = open_block(path)
        with pytest.raises(OSError, match="damaged"):
            block.write(0, memoryview(b"\xff" * 65536))
        block.close()
        assert path.read_bytes()[l2_offset + 8 :][: 65536 - 8] == before


def test_backing_loops_end(tmp_path: Path) -> None:
    one, two = tmp_path / "one.qcow2", tmp_path / "two.qcow2"
    create(one, 1 << 20)
    create_overlay(two, one, "qcow2")
    one.unlink()
    two.rename(one)  # now its own backing file
    with pytest.raises(ImageError, match="its own backing file"):
        open_block(one, readonly=True)


@pytest.mark.timeout(30)
def test_huge_tables_in_holes_cost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    snapshots, l1_entries = 4000, 4 << 20
    with path.open("wb") as file:
        file.write(header(snapshots=snapshots, snapshots_offset=8 << 16, incompatible=1))
        file.seek(8 << 16)
        for number in range(snapshots):
            file.write(struct.pack(">QIHHIIQII", (64 + number * 512) << 16, l1_entries, 0, 0, 0, 0, 0, 0, 0))
        try:
            file.truncate(1 << 42)
        except OSError:
            pytest.skip("the file system of the temporary directory has no files of 4 TiB")
    with pytest.raises(ImageError, match="too large tables"):
        open_block(path)


def test_long_backing_chains_are_refused(tmp_path: Path) -> None:
    create(tmp_path / "0.qcow2", 1 << 20)
    with pytest.raises(ImageError, match="back one another"):
        for number in range(1, 100):
            create_overlay(tmp_path / f"{number}.qcow2", tmp_path / f"{number - 1}.qcow2", "qcow2")
