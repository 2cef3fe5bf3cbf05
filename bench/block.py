"""virtio-blk beside QEMU's, with the same image file: a program of our own reads and writes past the guest's page cache."""

from __future__ import annotations

import os

from bench import programs, sides
from bench.compute import guest_with
from bench.context import Context
from bench.figures import OURS, QEMU, Row
from bench.process import Followed
from tests.guest import guests

MEBIBYTES, QUICK_MEBIBYTES = 256, 32
SECONDS, QUICK_SECONDS = 2.0, 0.3
TIMEOUT_S = 300.0
TESTS = {
    "read4k": "4 KiB random read",
    "write4k": "4 KiB random write",
    "read4k32": "4 KiB random read, 32 under way",
    "write4k32": "4 KiB random write, 32 under way",
    "read": "sequential read",
    "write": "sequential write",
}


def steps(context: Context) -> int:
    return 2 * context.runs


def run(context: Context) -> list[Row]:
    folder = context.folder("block")
    size, seconds = (QUICK_MEBIBYTES, QUICK_SECONDS) if context.quick else (MEBIBYTES, SECONDS)
    disk = folder / "disk.raw"
    with open(disk, "wb") as file:
        for _ in range(size):
            file.write(os.urandom(1 << 20))
    files = {**guests.virtio_modules(), "disk": programs.build("disk", folder).read_bytes()}
    script = guests.load_modules() + f"/disk /dev/vda {size} {seconds:g} {' '.join(TESTS)}\n"
    guest = guest_with(folder, files, script, disk=disk)
    rows = {test: Row(name, "MiB/s" if test in ("read", "write") else "1/s", False, group="disk") for test, name in TESTS.items()}
    for _ in range(context.runs):
        for side in (OURS, QEMU):
            context.step(f"virtio-blk, {side}")
            with Followed(guest.command(side), context.cpu, TIMEOUT_S, sides.environment()) as process:
                found = programs.follow(process, list(TESTS), context.teller(f"virtio-blk, {side}"))
                process.end()
            for test, outcome in found.items():
                operations, transferred, taken_ns = (int(word) for word in outcome.words)
                row = rows[test]
                amount = transferred / (1 << 20) if row.unit == "MiB/s" else operations
                row.add(side, amount * 1e9 / taken_ns, outcome.host.cpu / operations)
            context.advance()
    disk.unlink()
    return list(rows.values())
