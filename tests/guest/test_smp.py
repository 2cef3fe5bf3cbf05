"""Several CPUs: kernels of our own, Linux, firmware, a debugger; how they end.

The stress of the memory model for longer:  RINGFENCE_STRESS_SECONDS=600 scripts/test tests/guest/test_smp.py -k stress
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.guest.bare import CRASHED, PASS, POWER_OFF, Run, run_program
from tests.guest.bare import build as build_kernel
from tests.guest.bare import run as run_kernel
from tests.guest.guests import MOUNTS, debian_cloud_kernel, initramfs
from tests.guest.session import Session, run

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]
APPEND = "console=ttyS0 quiet panic=-1"
STRESS_S = int(os.environ.get("RINGFENCE_STRESS_SECONDS", "2"))


@pytest.mark.parametrize(("cpus", "x2apic"), [(2, 0), (2, 1), (4, 1)])
def test_start_interrupts_timers_and_shootdown(tmp_path: Path, cpus: int, x2apic: int) -> None:
    run_program(tmp_path, "smp", "--cpus", str(cpus), "--timeout", "200", CPUS=cpus, X2APIC=x2apic)


def stress(tmp_path: Path, **further: Any) -> Run:
    """Litmus tests, counters, locks, queues and code that one CPU writes for another."""
    kernel = build_kernel(tmp_path, "litmus", CPUS=2, SECONDS=STRESS_S, **further.pop("defines", {}))
    result = run_kernel(kernel, "--cpus", "2", timeout_s=STRESS_S + 200, **further).sound(1 << 30)
    assert result.status == PASS, result.story
    return result


@pytest.mark.timeout(STRESS_S + 300)
def test_stress_of_the_memory_model(tmp_path: Path) -> None:
    result = stress(tmp_path)
    assert result.stats["engine"]["handshakes"] > 10, result.story


@pytest.mark.timeout(STRESS_S + 300)
def test_stress_with_regions(tmp_path: Path) -> None:
    """The same where nearly every loop is a region, one of which another CPU changes while it is executed."""
    environment = {"RINGFENCE_TRANSLATION_CACHE": "off"}
    result = stress(tmp_path, environment=environment, module="tests.guest.early_regions", defines={"CHANGES_US": 200_000})
    assert result.stats["engine"]["regions"]["placed"] > 5, result.story


def test_stress_of_four_cpus(tmp_path: Path) -> None:
    """Fewer of everything: on a host of two CPUs, spinning is mostly waiting for the other thread's turn."""
    run_program(tmp_path, "litmus", "--cpus", "4", "--timeout", "200", CPUS=4, SECONDS=0, BATCH=64, COUNTS=400, VERSIONS=40, PAGES=10)


def test_bytes_for_the_serial_port_keep_their_order(tmp_path: Path) -> None:
    """Though translated code gathers them."""
    result = run_program(tmp_path, "smp_ports", "--cpus", "2", "--timeout", "200", CPUS=2)
    wanted = "".join("\n" if k % 61 == 60 else chr(ord("A") + k % 61) for k in range(20_000))
    assert result.console.replace("\r", "").partition("begin\n")[2].partition("end\n")[0] == wanted, result.story
    assert result.stats["engine"]["port_accesses_without_device"] > 5000, result.story


@pytest.mark.parametrize("cpus", [2, 3])
def test_halted_cpus_wake_each_other_by_nmi(tmp_path: Path, cpus: int) -> None:
    run_program(tmp_path, "smp_nmi", "--cpus", str(cpus), "--timeout", "200", CPUS=cpus)


@pytest.mark.parametrize("cpus", [2, 3])
def test_devices_are_asked_by_all(tmp_path: Path, cpus: int) -> None:
    """From the middle of translated code, where nobody may wait for the lock."""
    result = run_program(tmp_path, "smp_mmio", "--cpus", str(cpus), "--timeout", "200", CPUS=cpus)
    exits = result.stats["engine"]["exits"]
    assert exits["mmio"] > 1000 and exits["mmio_refused"] > 0, result.story


def test_without_native_translation(tmp_path: Path) -> None:
    kernel = build_kernel(tmp_path, "litmus", CPUS=2, SECONDS=0, BATCH=128, COUNTS=2000, VERSIONS=50, PAGES=10)
    result = run_kernel(kernel, "--cpus", "2", timeout_s=200, environment={"RINGFENCE_WITHOUT": "native-translation"})
    assert result.status == 85, result.story


def test_a_full_code_cache(tmp_path: Path) -> None:
    """All CPUs are stopped while translated code is dropped."""
    result = run_program(tmp_path, "smp_full", "--cpus", "2", "--timeout", "200", CPUS=2, GENERATIONS=20_000)
    assert result.stats["engine"]["code_cache_flushes"] >= 1, result.story


@pytest.mark.parametrize(
    ("how", "status", "text"),
    [("TRIPLE", CRASHED, "triple fault"), ("POWER", POWER_OFF, ""), ("HALT_ALL", CRASHED, "halted for ever"), ("HALT_FIRST", 85, "")],
)
def test_a_further_cpu_ends_the_machine(tmp_path: Path, how: str, status: int, text: str) -> None:
    kernel = build_kernel(tmp_path, "smp_ends", CPUS=2, **{how: 1})
    result = run_kernel(kernel, "--cpus", "2", timeout_s=30, board="pc").sound(1 << 30)
    assert result.status == status and text in result.messages, result.story


def test_a_reset_stops_all_cpus(tmp_path: Path) -> None:
    """The second start finds the first CPU alone."""
    kernel = build_kernel(tmp_path, "smp_ends", CPUS=2, RESET=1)
    result = run_kernel(kernel, "--cpus", "2", timeout_s=30, board="pc").sound(1 << 30)
    assert result.status == 85, result.story


@pytest.mark.parametrize("board", ["pc", "microvm"])
def test_linux_uses_both(tmp_path: Path, board: str) -> None:
    kernel = debian_cloud_kernel()
    busy = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"
    init = MOUNTS + f"echo $(nproc) CPUs\n({busy}) &\n({busy}) &\nwait\ngrep '^cpu[01]' /proc/stat\necho done\npoweroff -f\n"
    arguments = ["--kernel", str(kernel.image), "--initrd", str(initramfs(tmp_path, init)), "--append", APPEND, "--board", board]
    status, console, messages = run(*arguments, "--cpus", "2", timeout_s=240)
    assert b"2 CPUs" in console and status == 0, console[-2000:] + messages.encode()
    user = [int(line.split()[1]) for line in console.decode(errors="replace").splitlines() if line.startswith(("cpu0", "cpu1"))]
    assert len(user) == 2 and min(user) > 0, user


def test_linux_takes_a_cpu_out_and_in_and_reboots(tmp_path: Path) -> None:
    kernel = debian_cloud_kernel()
    init = (
        MOUNTS
        + "cd /sys/devices/system/cpu\necho 0 > cpu1/online; echo online: $(cat online)\n"
        + "echo 1 > cpu1/online; echo online: $(cat online)\nexec setsid cttyhack sh\n"
    )
    with Session(
        "--kernel", str(kernel.image), "--initrd", str(initramfs(tmp_path, init)), "--append", APPEND, "--cpus", "2"
    ) as guest:  # fmt: skip
        guest.expect(b"online: 0\r\n", 150)
        guest.expect(b"online: 0-1", 60)
        guest.type("reboot -f")
        guest.expect(b"online: 0\r\n", 150)
        guest.expect(b"online: 0-1", 60)
        guest.type("poweroff -f")
        assert guest.end() == 0, guest.story()


def test_what_cannot_have_several(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"")
    for arguments, text in (
        (("--cpus", "2", "--cpu", "486"), "no local APIC"),
        (("--cpus", "2", "--board", "isapc"), "isapc has one CPU"),
        (("--cpus", "17"), "from 1 to 16"),
        (("--cpus", "0"), "from 1 to 16"),
    ):
        status, _, messages = run("--kernel", str(kernel), *arguments)
        assert status == 125 and text in messages, messages
