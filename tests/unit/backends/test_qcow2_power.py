"""Loss of power: of what was written since the last fsync, any part may be on the disk or not, in any order."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from ringfence.backends.block.hostfile import BytesLike, HostFile
from ringfence.backends.block.open import create_overlay, open_block
from ringfence.backends.block.qcow2 import Qcow2Block, create
from ringfence.backends.block.qcow2_format import DIRTY, read_header
from tests.conformance.test_block_backends import read
from tests.unit.backends.qemu import assert_clean, check, needs_qemu_img, qemu_img

SIZE = 1 << 20
SECTOR = 512


class FragileFile(HostFile):
    """Remembers what is certain to be on the disk, and the writes that may or may not be."""

    def __init__(self, path: Path) -> None:
        opened = HostFile.open(path, False)
        super().__init__(opened.fd, opened.name, False)
        self.durable = path.read_bytes()
        self.pending: list[tuple[int, bytes]] = []

    def write(self, offset: int, data: BytesLike) -> None:
        super().write(offset, data)
        self.pending.append((offset, bytes(data)))

    def write_vector(self, offset: int, parts: Sequence[BytesLike]) -> None:
        self.write(offset, b"".join(bytes(part) for part in parts))

    def write_zeroes(self, offset: int, size_bytes: int, may_unmap: bool) -> None:
        self.write(offset, bytes(size_bytes))

    def punch_hole(self, offset: int, size_bytes: int) -> bool:
        self.write(offset, bytes(size_bytes))
        return True

    def sync(self) -> None:
        self.durable = self.lose_power(None)
        self.pending.clear()

    def lose_power(self, draw: random.Random | None) -> bytes:
        """The disk afterwards: a random choice of the sectors that were on their way, all of them without `draw`."""
        disk = bytearray(self.durable)
        for offset, data in self.pending:
            for at in range(0, len(data), SECTOR):
                if draw is None or draw.random() < 0.5:
                    start, part = offset + at, data[at : at + SECTOR]
                    disk.extend(bytes(max(0, start + len(part) - len(disk))))
                    disk[start : start + len(part)] = part
        return bytes(disk)


@pytest.fixture(params=["new", "overlay", "small clusters", "version 2", "snapshot", "compressed"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path, base = tmp_path / "disk.qcow2", tmp_path / "base.raw"
    base.write_bytes(b"base" * (SIZE // 4))
    match request.param:
        case "new":
            create(path, SIZE)
        case "overlay":
            create_overlay(path, base, "raw")
        case "small clusters":
            qemu_img("create", "-f", "qcow2", "-o", "cluster_size=512,refcount_bits=64", path, SIZE)
        case "version 2":
            qemu_img("create", "-f", "qcow2", "-o", "compat=0.10,cluster_size=4k", "-F", "raw", "-b", base, path)
        case "snapshot":
            qemu_img("convert", "-O", "qcow2", "-o", "cluster_size=8k", base, path)
            qemu_img("snapshot", "-c", "before", path)
        case "compressed":
            qemu_img("convert", "-c", "-O", "qcow2", base, path)
    return path


@needs_qemu_img
def test_what_was_flushed_survives(image: Path, tmp_path: Path) -> None:
    draw = random.Random(4)
    block = open_block(image)
    flushed = read(block)
    block.close()
    broken = tmp_path / "broken.qcow2"
    for _ in range(25):
        file = FragileFile(image)
        header = read_header(file)
        backing = open_block(tmp_path / header.backing_name, True, "raw") if header.backing_name else None
        writer = Qcow2Block(file, header, backing)
        model, touched = bytearray(flushed), set[int]()
        for _ in range(draw.randrange(1, 60)):
            size_bytes = draw.choice([512, 4096, 24 << 10, 100 << 10])
            offset = draw.randrange((SIZE - size_bytes) // SECTOR + 1) * SECTOR
            touched.update(range(offset // SECTOR, (offset + size_bytes) // SECTOR))
            match draw.randrange(8):
                case 0:
                    writer.flush()
                    flushed = bytes(model)
                    touched.clear()
                case 1:
                    writer.write_zeroes(offset, size_bytes, may_unmap=True)
                    model[offset : offset + size_bytes] = bytes(size_bytes)
                case _:
                    data = struct.pack("<Q", draw.getrandbits(64)) * (size_bytes // 8)
                    writer.write(offset, memoryview(data))
                    model[offset : offset + size_bytes] = data
        interrupted = draw.random() < 0.5
        if interrupted:  # in the middle of a flush: before one of its own waits for the disk
            stop_after = draw.randrange(3)
            syncs = 0

            def sync(file: FragileFile = file, stop_after: int = stop_after) -> None:
                nonlocal syncs
                syncs += 1
                if syncs > stop_after:
                    raise OSError("power lost")
                FragileFile.sync(file)

            file.sync = sync  # type: ignore[method-assign]
            try:
                writer.flush()
                flushed = bytes(model)
                touched.clear()
            except OSError:
                assert syncs > stop_after
        disk = file.lose_power(draw)
        HostFile.close(file)
        if backing:
            backing.close()
        broken.write_bytes(disk)
        dirty = header.version == 3 and struct.unpack_from(">Q", disk, 72)[0] & DIRTY
        report = check(broken)
        assert dirty or not report.get("corruptions"), report
        block = open_block(broken)
        now = read(block)
        for sector in range(SIZE // SECTOR):
            if sector not in touched:
                span = slice(sector * SECTOR, (sector + 1) * SECTOR)
                assert now[span] == flushed[span], f"sector {sector} lost what was flushed"
        block.close()
        assert_clean(broken)
        broken.replace(image)
        flushed = now
