"""Debian's kernels for 32-bit PCs, with two levels of page tables and with three (PAE), and their user space."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ringfence import Machine, MachineSpec
from tests.guest import guests

pytestmark = [pytest.mark.guest, pytest.mark.timeout(400)]

BOOT_S = 300
INIT = guests.MOUNTS + "stty -echo\necho user space\nPS1='# ' exec setsid cttyhack sh\n"
PRIMES = "n=2; while [ $n -lt 60 ]; do d=2; while [ $((d * d)) -le $n ] && [ $((n % d)) -ne 0 ]; do d=$((d + 1)); done; " + (
    "[ $((d * d)) -gt $n ] && echo -n $n,; n=$((n + 1)); done; echo"
)


@contextmanager
def booted(folder: Path, flavour: str, files: dict[str, bytes], **fields: object) -> Iterator[Machine]:
    kernel = guests.debian_kernel(flavour, "i386")
    initrd = guests.initramfs(folder, INIT, files, "i386")
    values = {"kernel": kernel.image, "initrd": initrd, "append": "console=ttyS0 quiet panic=-1", "memory": "256M", "timeout": 380}
    with Machine(MachineSpec.build(**{**values, **fields})) as machine:
        machine.start()
        machine.console.wait_for(b"user space", BOOT_S)
        machine.console.wait_for(b"# ", 60)
        yield machine


def ask(machine: Machine, command: str) -> str:
    """Nothing is echoed."""
    machine.console.send(command + "\n")
    return machine.console.wait_for(b"# ", 120)[:-2].decode(errors="replace").replace("\r", "").strip()


@pytest.mark.parametrize(
    ("flavour", "cpu"), [("686", "x86-64-v2"), ("686-pae", "x86-64-v2"), ("686", "pentium-pro"), ("686-pae", "pentium3")]
)
def test_commands_agree_with_the_host(tmp_path: Path, flavour: str, cpu: str) -> None:
    data = random.Random(flavour).randbytes(300_000)
    with booted(tmp_path, flavour, {"data": data}, cpu=cpu) as machine:
        assert ask(machine, "uname -m") == "i686"
        assert ask(machine, "uname -r").endswith(f"-{flavour}")
        # Pages without execution need three levels of page tables, for which one of the kernels was made, and a CPU that has them.
        nx = ask(machine, "dmesg | grep 'NX (Execute Disable)'")
        assert ("protection: active" in nx) == (flavour == "686-pae" and cpu == "x86-64-v2"), nx
        flags = ask(machine, "grep -m1 ^flags /proc/cpuinfo").split()
        assert [name in flags for name in ("cmov", "fxsr", "sse2")] == [True, cpu != "pentium-pro", cpu == "x86-64-v2"]
        assert ask(machine, "dmesg | grep -iE -A20 'Call Trace|BUG:|WARNING:|general protection|invalid opcode'") == ""
        assert ask(machine, "sha256sum /data").split()[0] == hashlib.sha256(data).hexdigest()
        assert ask(machine, "md5sum < /data").split()[0] == hashlib.md5(data).hexdigest()
        # numbers of awk are floating-point ones
        wanted = sum((k + 0.5) / k**3 for k in range(1, 2001))
        summed = """awk 'BEGIN { for (k = 1; k <= 2000; k++) s += (k + 0.5) / (k * k * k); printf "%.12f\\n", s }'"""
        assert ask(machine, summed) == f"{wanted:.12f}"
        printed = """awk 'BEGIN { printf "%.15e %d %x\\n", 1 / 3 * 1e300 / 7e-7, 2199023255552 * 5 / 7000, 3735928559 % 65537 }'"""
        assert ask(machine, printed) == f"{1 / 3 * 1e300 / 7e-7:.15e} {2199023255552 * 5 // 7000} {3735928559 % 65537:x}"
        assert ask(machine, PRIMES) == "2,3,5,7,11,13,17,19,23,29,31,37,41,43,47,53,59,"
        assert ask(machine, "echo $((123456789012 * 1000003 % 1000000007))") == str(123456789012 * 1000003 % 1000000007)
        assert ask(machine, "gzip -9 < /data | gunzip | cmp - /data && sort -n /proc/uptime >/dev/null && echo the same") == "the same"
        # a crash of a program is its own, and told apart
        assert ask(machine, "sh -c 'kill -SEGV $$'; echo $?").splitlines()[-1] == "139"
        machine.console.send("poweroff -f\n")
        status = machine.wait(60)
        assert status.code == 0, status.report()
