"""A writer that is killed at any moment leaves an image that is consistent and holds what was flushed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ringfence
from ringfence.backends.block.open import create_overlay, open_block
from ringfence.backends.block.qcow2 import create
from tests.conformance.test_block_backends import read
from tests.unit.backends.qemu import assert_clean, check, needs_qemu_img, qemu_img

SLOT, SLOTS = 48 << 10, 400
KILLS = 20

# Every slot of 48 KiB is overwritten with a rising number; a line tells which number each flush has made safe.
WRITER = f"""
import random, struct, sys
from ringfence.backends.block.open import open_block
path, seed = sys.argv[1], int(sys.argv[2])
draw = random.Random(seed)
block = open_block(path)
print("ready", flush=True)
number = seed << 20
since = {{}}
while True:
    for _ in range(draw.randrange(1, 12)):
        number += 1
        slot = draw.randrange({SLOTS})
        if draw.random() < 0.15:
            block.write_zeroes(slot * {SLOT}, {SLOT}, may_unmap=True)
            since[slot] = 0
        else:
            block.write(slot * {SLOT}, memoryview(struct.pack("<Q", number) * ({SLOT} // 8)))
            since[slot] = number
    print("begin", *(f"{{s}}={{n}}" for s, n in since.items()), flush=True)
    block.flush()
    print("done", flush=True)
    since.clear()
"""


@pytest.fixture(params=["new", "overlay", "version 2", "snapshot"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    match request.param:
        case "new":
            create(path, SLOT * SLOTS)
        case "overlay":
            (tmp_path / "base.raw").write_bytes(b"base" * (SLOT * SLOTS // 4))
            create_overlay(path, tmp_path / "base.raw", "raw")
        case _ if not shutil.which("qemu-img"):
            pytest.skip("qemu-img is not installed")
        case "version 2":
            qemu_img("create", "-f", "qcow2", "-o", "compat=0.10,cluster_size=4k", path, str(SLOT * SLOTS))
        case "snapshot":
            qemu_img("create", "-f", "qcow2", "-o", "cluster_size=16k", path, str(SLOT * SLOTS))
            block = open_block(path)
            block.write(0, memoryview(b"s" * SLOT * (SLOTS // 2)))
            block.close()
            qemu_img("snapshot", "-c", "before", path)
    return path


@needs_qemu_img
def test_killed_while_writing(image: Path) -> None:
    draw = random.Random(11)
    block = open_block(image)
    start = read(block)
    block.close()
    # for each slot: the contents that the last flush made safe, and those written since
    safe = {slot: {start[slot * SLOT :][:SLOT]} for slot in range(SLOTS)}
    environment = os.environ | {"PYTHONPATH": str(Path(ringfence.__file__).parents[1])}
    leaks = 0
    for seed in range(1, KILLS // 4 + 1):
        log = image.with_suffix(f".{seed}.log")
        with log.open("wb") as output:
            writer = subprocess.Popen([sys.executable, "-c", WRITER, str(image), str(seed)], stdout=output, env=environment)
        try:
            deadline = time.monotonic() + 60
            while not log.stat().st_size and time.monotonic() < deadline and writer.poll() is None:
                time.sleep(0.01)
            time.sleep(draw.uniform(0.0, 0.4))
        finally:
            writer.send_signal(signal.SIGKILL)
            assert writer.wait(timeout=60) == -signal.SIGKILL
        pending: dict[int, int] = {}
        text = log.read_text()
        assert text.startswith("ready")
        text = text[: text.rindex("\n") + 1]  # a line across a page of the log may be cut by the kill
        for line in text.splitlines()[1:]:
            word, *items = line.split()
            if word == "begin":
                pending = {int(slot): int(number) for slot, number in (item.split("=") for item in items)}
                for slot, number in pending.items():
                    safe[slot].add(bytes(SLOT) if number == 0 else number.to_bytes(8, "little") * (SLOT // 8))
            else:
                for slot, number in pending.items():
                    safe[slot] = {bytes(SLOT) if number == 0 else number.to_bytes(8, "little") * (SLOT // 8)}
        report = check(image)
        assert not report.get("corruptions"), report
        leaks += bool(report.get("leaks"))
        block = open_block(image)
        assert_clean_while_open(image)
        # what was written after the last completed flush may be there or not, by sectors of the file system
        unsure = {slot for slot in range(SLOTS) if len(safe[slot]) > 1} | written_last(seed, text)
        for slot in range(SLOTS):
            now = read(block, slot * SLOT, SLOT)
            if slot not in unsure:
                assert now in safe[slot], f"slot {slot} lost what was flushed"
            safe[slot] = {now}
        block.close()
        assert_clean(image)
    print(f"images with leaked clusters before repair: {leaks} of {KILLS // 4}")


def assert_clean_while_open(image: Path) -> None:
    result = subprocess.run(["qemu-img", "check", "-U", str(image)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr


def written_last(seed: int, text: str) -> set[int]:
    """The slots of the batch in which the writer was killed, which it may not have told of: drawn as it drew them."""
    draw = random.Random(seed)
    for _ in range(text.count("\nbegin")):
        for _ in range(draw.randrange(1, 12)):
            draw.randrange(SLOTS)
            draw.random()
    slots = set()
    for _ in range(draw.randrange(1, 12)):
        slots.add(draw.randrange(SLOTS))
        draw.random()
    return slots
