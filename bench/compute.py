"""Programs inside of a guest: one boot runs them all, beside QEMU, and natively on this host."""

from __future__ import annotations

from pathlib import Path

from bench import packages, programs, sides
from bench.context import Context
from bench.figures import NATIVE, OURS, QEMU, BenchError, Row
from bench.process import Followed
from tests.guest import guests

NATIVE_S, GUEST_S = 120.0, 900.0
CLOCK_TOLERANCE = 0.15  # a guest whose clock differs more from the host's than this, over all programs, does not measure
LATE_S = 1.0  # how late a busy host may let us see all these lines
QUICK_PERCENT, PERCENT = 4, 100
FROM_PACKAGES = "packages"


def steps(context: Context) -> int:
    return 3 * context.runs


def run(context: Context) -> list[Row]:
    folder = context.folder("compute")
    percent = QUICK_PERCENT if context.quick else PERCENT
    rows = {name: Row(name, "s", group=kind) for name, kind in programs.OWN.items()}
    paths = [programs.build(name, folder) for name in [*programs.OWN, "timed"]]
    initrd_files = {f"root/{path.name}": path.read_bytes() for path in paths}
    own = "".join(f"{{0}}/{name} {percent}\n" for name in programs.OWN)
    home = "/root"  # of the guest
    native, inside = own.format(folder), own.format(home)
    further = b""
    try:
        root = packages.tree(folder)
    except guests.Unavailable as reason:
        context.note(f"openssl, sqlite3 and python3 were left out: {reason}")
    else:
        packages.size_inputs(root, percent)
        native += packages.script(root, str(root), f"{folder}/timed", percent)
        inside += packages.script(root, f"{home}/packages", f"{home}/timed", percent)
        further = packages.archive(root, "root/packages")
        rows |= {name: Row(name, "s", group=FROM_PACKAGES) for name in packages.TIMED}
        rows |= {name: Row(name, "MB/s", False, group=FROM_PACKAGES) for name in packages.SPEED}
    guest = guest_with(folder, initrd_files, inside, further)
    commands = {NATIVE: ["sh", "-c", native], OURS: guest.command(OURS), QEMU: guest.command(QEMU)}
    if not context.quick:
        context.step("compute: a first run, which compiles what the caches are missing")
        with Followed(commands[OURS], context.cpu, GUEST_S, sides.environment()) as process:
            programs.follow(process, list(rows), context.teller("compute, first run"))
            process.end()
    for _ in range(context.runs):
        for side, command in commands.items():
            context.step(f"compute, {side}")
            timeout_s = NATIVE_S if side == NATIVE else GUEST_S
            with Followed(command, context.cpu, timeout_s, sides.environment()) as process:
                found = programs.follow(process, list(rows), context.teller(f"compute, {side}"))
                process.end()
            add_all(rows, side, found)
            context.advance()
    return list(rows.values())


def guest_with(folder: Path, files: dict[str, bytes], commands: str, further: bytes = b"", **options: object) -> sides.Guest:
    """A guest that runs the commands of a shell and switches itself off."""
    initrd = guests.initramfs(folder, guests.MOUNTS + commands + "poweroff -f\n", files)
    if further:
        initrd.write_bytes(initrd.read_bytes() + further)
    return sides.Guest(sides.kernel_elf(folder), initrd, **options)  # type: ignore[arg-type]


def add_all(rows: dict[str, Row], side: str, found: dict[str, programs.Outcome]) -> None:
    """One repetition of all rows.  Raises BenchError where checksums differ or the guest's clock is wrong."""
    timed = [outcome for outcome in found.values() if outcome.rate is None]
    told, seen = sum(outcome.seconds for outcome in timed), sum(outcome.host.wall for outcome in timed)
    if abs(told - seen) > CLOCK_TOLERANCE * seen + LATE_S:
        raise BenchError(f"{side} says that its programs took {told:.2f} s; by the host's clock it was {seen:.2f} s")
    for name, outcome in found.items():
        if outcome.rate is None:
            rows[name].add(side, outcome.seconds, outcome.host.cpu, outcome.checksum)
        else:
            rows[name].add(side, outcome.rate, outcome.host.cpu / (outcome.rate * outcome.host.wall))
