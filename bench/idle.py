"""A guest that sleeps: what it takes of the host's CPU and memory, and what a second one like it takes besides.

Memory of the monitor is what is resident of all its mappings except those of the guest's RAM (`resident.py`): for the first guest the
resident set, which counts shared libraries whole; for the second the growth of the sum of both monitors' proportional shares (PSS).
Both are looked at some seconds after the guest has come to rest.
Guest RAM is a memfd on both sides, QEMU's by its option, so that it is told apart by name.
"""

from __future__ import annotations

import re
import time
from contextlib import ExitStack

from bench import sides
from bench.compute import guest_with
from bench.context import Context
from bench.figures import OURS, QEMU, Row
from bench.process import Followed
from bench.resident import resident

MARK = "ringfence-bench-idle"
IDLE_S, QUICK_S = 30.0, 2.0
SETTLE_S = 7.0  # an idle guest's monitor has given back by then what it can do without
BOOT_S = 300.0
RAM = {OURS: re.compile(r"memfd:ringfence-(ram|low|high)"), QEMU: re.compile(r"memfd:memory-backend-memfd")}
CPU, FIRST, SECOND = "host CPU of an idle guest", "memory beyond guest pages, first guest", "memory of a second guest like it"


def steps(context: Context) -> int:
    return 2 * context.runs


def run(context: Context) -> list[Row]:
    guest = guest_with(context.folder("idle"), {}, f"echo {MARK}\nsleep 100000\n")
    qemu = guest.command(QEMU)
    qemu += ["-object", f"memory-backend-memfd,id=ram,size={guest.memory_mib}M,share=on", "-machine", "memory-backend=ram"]
    rows = [Row(CPU, "%", group="idle"), Row(FIRST, "MiB", group="memory"), Row(SECOND, "MiB", group="memory")]
    seconds = QUICK_S if context.quick else IDLE_S
    for _ in range(context.runs):
        for side, command in ((OURS, guest.command(OURS)), (QEMU, qemu)):
            with ExitStack() as stack:

                def started(command: list[str] = command, stack: ExitStack = stack) -> Followed:
                    process = stack.enter_context(Followed(command, context.cpu, BOOT_S, sides.environment()))
                    process.until(MARK.encode())
                    time.sleep(SETTLE_S)
                    return process

                context.step(f"{side}: an idle guest")
                first = started()
                before = first.now()
                time.sleep(seconds)
                spent = first.now() - before
                alone = resident(first.pid, RAM[side])
                context.step(f"{side}: a second guest")
                second = started()
                together = [resident(process.pid, RAM[side]) for process in (first, second)]
            for row, value in zip(rows, (100 * spent.cpu / spent.wall, alone.rss, sum(r.pss for r in together) - alone.pss), strict=True):
                row.add(side, value)
            context.advance()
    return rows
