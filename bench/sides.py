"""The same machine for both sides: one kernel ELF, initramfs, memory, command line, and as far as QEMU can, one CPU model."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from bench.figures import OURS, QEMU
from ringfence.engine import tsc
from ringfence.machine.boot.load import unpack_vmlinux
from tests.guest import guests

ROOT = Path(__file__).parent.parent
MEMORY_MIB = 512
APPEND = "console=ttyS0 quiet reboot=t panic=-1"
# What our default model, x86-64-v2, has beyond QEMU's: programs must choose the same paths on both sides.
CPU = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdtscp,+pdpe1gb,+fsgsbase,+smep,+smap,+umip,+erms"
RINGFENCE = [sys.executable, "-m", "ringfence", "run"]


@dataclass(frozen=True)
class Guest:
    """What is started on both sides.  `ours` and `qemu` are what only one of them is told."""

    kernel: Path
    initrd: Path
    append: str = APPEND
    board: str = "pc"
    cpus: int = 1
    memory_mib: int = MEMORY_MIB
    disk: Path | None = None
    ours: tuple[str, ...] = field(default=())

    def command(self, side: str) -> list[str]:
        return {OURS: self._ours, QEMU: self._qemu}[side]()

    def _ours(self) -> list[str]:
        command = [*RINGFENCE, "--kernel", str(self.kernel), "--initrd", str(self.initrd), "--append", self.append]
        command += ["--memory", f"{self.memory_mib}M", "--board", self.board, *self.ours]
        if self.cpus > 1:
            command += ["--cpus", str(self.cpus)]
        if self.disk:
            command += ["--disk", f"{self.disk},format=raw"]
        return command

    def _qemu(self) -> list[str]:
        # Without kvmclock the kernel must be told the TSC's rate: the microvm has no timer that it could measure it with.
        rate = tsc.hz()
        append = f"{self.append} tsc_early_khz={rate // 1000} lpj={rate // 250}"
        command = [*qemu(self.board, self.memory_mib, self.cpus), "-kernel", str(self.kernel)]
        command += ["-initrd", str(self.initrd), "-append", append]
        if self.disk:
            command += ["-drive", f"file={self.disk},format=raw,if=none,id=d", "-device", "virtio-blk-pci,drive=d"]
        return command


def qemu(board: str, memory_mib: int, cpus: int = 1) -> list[str]:
    machine = {"pc": "pc", "microvm": "microvm,rtc=on,pit=on,pic=on"}[board]
    accelerator = f"tcg,thread={'multi' if cpus > 1 else 'single'}"
    command = ["qemu-system-x86_64", "-M", machine, "-accel", accelerator, "-cpu", CPU, "-smp", str(cpus)]
    return [*command, "-m", str(memory_mib), "-nographic", "-no-reboot", "-nic", "none"]


def environment(**more: str) -> dict[str, str]:
    """That of a Ringfence from this source tree, with bytecode, which an installation by pip has."""
    paths = filter(None, (str(ROOT), more.pop("PYTHONPATH", ""), os.environ.get("PYTHONPATH")))
    bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(ROOT / "build" / "bytecode")}
    return {"PYTHONPATH": os.pathsep.join(paths), **bytecode, **more}


def kernel_elf(folder: Path) -> Path:
    """Debian's cloud kernel as the ELF file inside of it, which both sides start directly."""
    elf = folder / "vmlinux"
    if not elf.exists():
        unpacked = unpack_vmlinux(guests.debian_cloud_kernel().image.read_bytes())
        assert unpacked is not None
        elf.write_bytes(unpacked)
    return elf


def qemu_version() -> str:
    return subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
