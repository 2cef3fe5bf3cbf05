"""Time to user space beside QEMU's TCG: the same kernel ELF, initramfs, memory and one CPU, in turn, A B A B.

    python bench/boot.py [--runs 5] [--alpine] [--write docs/bench-boot.md]

Wall time from starting the command to the line that the guest's /init prints; medians and the range.  QEMU comes from the
distribution's packages; the guests are those of the tests.  Ours runs with its caches warm; what they cost once is told.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from ringfence.engine.emulate import guest_tsc_hz  # noqa: E402
from ringfence.images import alpine  # noqa: E402
from ringfence.machine.boot.load import unpack_vmlinux  # noqa: E402
from tests.guest import guests  # noqa: E402

MARK = "ringfence-bench-user-space"
INIT = f"""#!/bin/busybox sh
/bin/busybox mkdir -p /proc
/bin/busybox mount -t proc proc /proc
echo {MARK}
/bin/busybox poweroff -f
"""
TIMEOUT_S = 120.0
GRACE_S = 5.0
QEMU_OPTIONS = ("-accel", "tcg,thread=single", "-m", "512", "-nographic", "-no-reboot")


def time_to_mark(command: list[str], mark: bytes) -> float:
    """Seconds from the start of the command until its output holds the mark."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    assert process.stdout is not None
    seen = b""
    try:
        os.set_blocking(process.stdout.fileno(), False)
        while mark not in seen:
            if time.perf_counter() - start > TIMEOUT_S or process.poll() not in (None, 0):
                raise SystemExit(f"{command[0]} did not reach user space:\n{seen[-2000:].decode(errors='replace')}")
            seen = seen[-100_000:] + (process.stdout.read() or b"")
            time.sleep(0.002)
        taken = time.perf_counter() - start
        # Most guests now switch themselves off: let the monitor end in order and keep its caches.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=GRACE_S)
        return taken
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def debian(folder: Path) -> tuple[list[str], list[str], bytes]:
    """(ours, QEMU's, mark) for Debian's cloud kernel and a busybox initramfs."""
    kernel = guests.debian_cloud_kernel()
    elf = folder / "vmlinux"
    unpacked = unpack_vmlinux(kernel.image.read_bytes())
    assert unpacked is not None
    elf.write_bytes(unpacked)
    initrd = guests.initramfs(folder, INIT)
    append = "console=ttyS0 reboot=t panic=-1"
    ours = [sys.executable, "-m", "ringfence", "run", "--kernel", str(elf), "--initrd", str(initrd), "--append", append]
    ours += ["--memory", "512M", "--board", "microvm"]
    # Without kvmclock the kernel must be told the TSC's rate: this machine model has no timer that it could measure it with.
    early = f" tsc_early_khz={guest_tsc_hz() // 1000} lpj={guest_tsc_hz() // 250}"
    qemu = [
        "qemu-system-x86_64",
        "-M",
        "microvm,rtc=on,pit=on,pic=on",
        "-accel",
        "tcg,thread=single",
        "-m",
        "512",
        "-nographic",
        "-no-reboot",
    ]
    qemu += ["-kernel", str(elf), "-initrd", str(initrd), "-append", append + early]
    return ours, qemu, MARK.encode()


def alpine_shell(folder: Path) -> tuple[list[str], list[str], bytes]:
    """(ours, QEMU's, mark) for Alpine up to its shell's prompt, with the same kernel, initrd and a copy of the disk."""
    files = guests.alpine_files()
    recipe = alpine.recipe()
    initrd = folder / "initrd"
    parts = [Path(part).read_bytes() for part in recipe.initrd]
    initrd.write_bytes(b"".join(part + bytes(-len(part) % 4) for part in parts))
    disk = folder / "disk.qcow2"
    shutil.copy(files.disk, disk)
    ours = [sys.executable, "-m", "ringfence", "run", "alpine"]
    qemu = ["qemu-system-x86_64", "-M", "pc", *QEMU_OPTIONS]
    qemu += ["-kernel", str(files.kernel), "-initrd", str(initrd), "-append", recipe.append]
    qemu += ["-drive", f"file={disk},format=qcow2,if=virtio,snapshot=on"]
    return ours, qemu, b"alpine:~# "


def compare(name: str, ours: list[str], qemu: list[str], mark: bytes, runs: int) -> str:
    """One row of the table."""
    a, b = [], []
    first = time_to_mark(ours, mark)
    for k in range(runs):
        a.append(time_to_mark(ours, mark))
        b.append(time_to_mark(qemu, mark))
        print(f"{name} {k + 1} of {runs}: Ringfence {a[-1]:.2f} s, QEMU TCG {b[-1]:.2f} s", file=sys.stderr)
    ratio = statistics.median(x / y for x, y in zip(a, b, strict=True))

    def cell(values: list[float]) -> str:
        return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"

    return f"| {name} | {cell(a)} | {cell(b)} | {ratio:.2f} | {first:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--alpine", action="store_true", help="also Alpine to its shell")
    parser.add_argument("--write", type=Path, help="write the table to this Markdown file")
    options = parser.parse_args()
    if not shutil.which("qemu-system-x86_64"):
        raise SystemExit("qemu-system-x86_64 is missing: install the package qemu-system-x86")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for label, make in (("Debian cloud kernel to user space", debian), ("Alpine to its shell", alpine_shell)):
            if make is debian or options.alpine:
                folder = Path(name) / make.__name__
                folder.mkdir()
                rows.append(compare(label, *make(folder), options.runs))
    version = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    table = [
        "| guest | Ringfence, s | QEMU TCG, s | ratio | first start, s |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"Wall time, median (range) of {options.runs} runs in turn; ratio: median of the pairs. {version};",
        f"Python {platform.python_version()}; {os.cpu_count()} CPUs. The first start includes what the caches were missing.",
    ]
    print("\n".join(table))
    if options.write:
        options.write.write_text("# Booting beside QEMU's TCG\n\n" + "\n".join(table) + "\n")


if __name__ == "__main__":
    main()
