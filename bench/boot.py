"""Boot times: from starting the command until its output holds a mark, beside QEMU with the same kernel, initrd and memory.

Cold is a run without the cache of translations (RINGFENCE_TRANSLATION_CACHE=off); warm has what an earlier boot left there.  The caches
of stencils, which are made once per host and version, are present in both.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from bench import sides
from bench.context import Context
from bench.figures import OURS, QEMU, Row
from bench.process import Followed
from ringfence.images import alpine
from tests.guest import bare, guests

MARK = "ringfence-bench-user-space"
INIT = f"""#!/bin/busybox sh
/bin/busybox mkdir -p /proc
/bin/busybox mount -t proc proc /proc
echo {MARK}
/bin/busybox poweroff -f
"""
COLD = {"RINGFENCE_TRANSLATION_CACHE": "off"}
TIMEOUT_S, FIRST_S = 180.0, 600.0
COLD_SUFFIX, WARM_SUFFIX = ", cold", ", warm"
DEBIAN, ALPINE, SEABIOS = "Debian's cloud kernel to user space", "Alpine to its shell", 'SeaBIOS to "Booting from"'
START = "Start of the command to the guest's first output"


@dataclass(frozen=True)
class Boot:
    name: str
    ours: list[str]
    qemu: list[str] | None
    mark: bytes
    ends: bool  # the guest switches itself off after the mark


def steps(context: Context) -> int:
    return (1 if context.quick else 4) * context.runs


def run(context: Context) -> list[Row]:
    folder = context.folder("boot")
    boots = [debian(folder)]
    if not context.quick:
        boots += [alpine_shell(folder), seabios(folder), first_instruction(folder)]
    rows: list[Row] = []
    for boot in boots:
        rows += measured(context, boot)
    return rows


def measured(context: Context, boot: Boot) -> list[Row]:
    """The row of cold starts and that of warm ones, with the same runs of QEMU beside both."""
    cold, warm = (Row(boot.name + suffix, "s", group="boot") for suffix in (COLD_SUFFIX, WARM_SUFFIX))
    context.step(f"{boot.name}: a first run, for the caches")
    _once(context, boot, boot.ours, {}, FIRST_S)
    for _ in range(context.runs):
        for row, more in ((cold, COLD), (warm, {})):
            context.step(row.name)
            row.add(OURS, *_once(context, boot, boot.ours, more))
        if boot.qemu:
            context.step(f"{boot.name}, QEMU")
            figures = _once(context, boot, boot.qemu, {})
            cold.add(QEMU, *figures)
            warm.add(QEMU, *figures)
        context.advance()
    return [cold, warm]


def _once(context: Context, boot: Boot, command: list[str], more: dict[str, str], timeout_s: float = TIMEOUT_S) -> tuple[float, float]:
    with Followed(command, context.cpu, timeout_s, sides.environment(**guests.alpine_python_path(), **more)) as process:
        moment = process.until(boot.mark)
        if boot.ends:
            process.end()
        else:
            process.stop()
    return moment.wall, moment.cpu


def debian(folder: Path) -> Boot:
    guest = sides.Guest(sides.kernel_elf(folder), guests.initramfs(folder, INIT), board="microvm")
    return Boot(DEBIAN, guest.command(OURS), guest.command(QEMU), MARK.encode(), True)


def alpine_shell(folder: Path) -> Boot:
    files = guests.alpine_files()
    recipe = alpine.recipe()
    initrd = folder / "alpine-initrd"
    parts = [Path(part).read_bytes() for part in recipe.initrd]
    initrd.write_bytes(b"".join(part + bytes(-len(part) % 4) for part in parts))
    disk = folder / "disk.qcow2"
    shutil.copy(files.disk, disk)
    qemu = sides.qemu("pc", memory_mib=sides.MEMORY_MIB)
    qemu += ["-kernel", str(files.kernel), "-initrd", str(initrd), "-append", recipe.append]
    qemu += ["-drive", f"file={disk},format=qcow2,if=virtio,snapshot=on"]
    ours = [*sides.RINGFENCE, "alpine", "--memory", f"{sides.MEMORY_MIB}M"]
    return Boot(ALPINE, ours, qemu, b"alpine:~# ", False)


def seabios(folder: Path) -> Boot:
    """By its log on port 0x402."""
    disk = folder / "empty.img"
    disk.write_bytes(bytes(10 << 20))
    ours = ["env", "RINGFENCE_TRACE=firmware", *sides.RINGFENCE, "--disk", str(disk), "--memory", "64M"]
    ours += ["--display", "none", "--serial", "null"]
    qemu = ["qemu-system-x86_64", "-M", "pc", "-accel", "tcg,thread=single", "-m", "64", "-display", "none", "-serial", "none"]
    qemu += ["-monitor", "none", "-nic", "none", "-drive", f"file={disk},format=raw"]
    qemu += ["-chardev", "stdio,id=log", "-device", "isa-debugcon,iobase=0x402,chardev=log"]
    return Boot(SEABIOS, ours, qemu, b"Booting from", False)


def first_instruction(folder: Path) -> Boot:
    """A bare kernel that prints a line some thousand instructions after its first one."""
    kernel = bare.build(folder, "hello")
    ours = [*sides.RINGFENCE, "--kernel", str(kernel), "--device", "debug-exit", "--memory", "64M"]
    return Boot(START, ours, None, b"hello", True)
