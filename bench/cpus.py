"""Two vCPUs: two busy programs beside one, a spin lock, an atomic counter."""

from __future__ import annotations

import os
import subprocess

from bench import programs, sides
from bench.compute import add_all, guest_with
from bench.context import Context
from bench.figures import NATIVE, OURS, QEMU, Row
from bench.process import Followed

CPUS = 2
TIMEOUT_S = 300.0
SCALING = "two busy programs, speed against one"
CPU_EACH = "host CPU of one alone against that of each of two"  # 1: two lose nothing, whether or not the host had two CPUs to give
NAMES = ("busy1", "busy2", "spinlock", "atomic")


def works() -> str:
    """Why `ringfence run --cpus 2` cannot be measured; "" when it can."""
    environment = {**os.environ, "COLUMNS": "200", **sides.environment()}
    done = subprocess.run([*sides.RINGFENCE, "--help"], env=environment, capture_output=True, text=True, timeout=60, check=False)
    return "" if "--cpus" in done.stdout else "`ringfence run` has no option --cpus here"


def steps(context: Context) -> int:
    return 3 * context.runs


def run(context: Context) -> list[Row]:
    if len(context.cpus) < CPUS:
        context.note(f"Two vCPUs were left out: the bench may use {len(context.cpus)} CPU of this host.")
        return []
    reason = works()
    if reason:
        context.note(f"Two vCPUs of Ringfence were left out: {reason}.")
    folder = context.folder("cpus")
    percent = 4 if context.quick else 100
    paths = [programs.build("busy", folder), *(programs.build(name, folder, "-pthread") for name in ("spinlock", "atomic"))]
    script = "".join(f"{{0}}/busy {n} {percent}\n" for n in (1, CPUS)) + "".join(f"{{0}}/{name} {percent}\n" for name in NAMES[2:])
    files = {f"root/{path.name}": path.read_bytes() for path in paths}
    guest = guest_with(folder, files, script.format("/root"), cpus=CPUS)
    commands = {NATIVE: ["sh", "-c", script.format(folder)], OURS: guest.command(OURS), QEMU: guest.command(QEMU)}
    if reason:
        del commands[OURS]
        for _ in range(context.runs):
            context.advance()
    if OURS in commands and not context.quick:
        context.step("two vCPUs: a first run, which compiles what the caches are missing")
        with Followed(commands[OURS], ",".join(context.cpus[:CPUS]), TIMEOUT_S, sides.environment()) as process:
            programs.follow(process, list(NAMES), context.teller("two vCPUs, first run"))
            process.end()
    rows = {name: Row(name, "s", group="two vCPUs") for name in NAMES}
    pair = ",".join(context.cpus[:CPUS])
    for _ in range(context.runs):
        for side, command in commands.items():
            context.step(f"two vCPUs, {side}")
            with Followed(command, pair, TIMEOUT_S, sides.environment()) as process:
                found = programs.follow(process, list(NAMES), context.teller(f"two vCPUs, {side}"))
                process.end()
            add_all(rows, side, found)
            context.advance()
    scaling, each = Row(SCALING, "x", False, group="two vCPUs"), Row(CPU_EACH, "x", False, group="two vCPUs")
    for side in commands:
        columns = [(scaling, rows["busy1"].values, rows["busy2"].values)]
        if side != NATIVE:  # programs of a shell are counted in ticks, and once it has waited for them: too coarse for a ratio
            columns.append((each, rows["busy1"].cpu, rows["busy2"].cpu))
        for row, one, two in columns:
            for a, b in zip(one[side], two[side], strict=True):
                row.add(side, 2 * a / b)
    return [*rows.values(), scaling, each]
