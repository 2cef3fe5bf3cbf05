"""Guests that attack the monitor: it goes on, or it ends that guest with status 70 and a reason.

Every attack runs in a monitor process of its own, so that a crash of the monitor is seen as what it is.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guest.bare import CRASHED, FAIL, PASS, POWER_OFF, TIMEOUT, Run, build, cache_copy, run

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]
PEAK_BYTES = 700 << 20
BOARDS = pytest.mark.parametrize("board", ["pc", "microvm"])


def attacked(result: Run, *statuses: int) -> Run:
    """The monitor is whole, and the end is one of those that are allowed; 70 comes with a reason and registers."""
    result.sound(PEAK_BYTES)
    assert result.status in statuses, result.story
    if result.status == CRASHED:
        assert "The guest crashed: " in result.messages and " rip " in result.messages, result.story
    return result


@BOARDS
@pytest.mark.parametrize("seed", [1, 2])
def test_random_port_accesses(tmp_path: Path, board: str, seed: int) -> None:
    kernel = build(tmp_path, "hostile_registers", ATTACK=1, SPARE=1, INTERRUPTS=0, SEED=seed, ROUNDS=20000)
    attacked(run(kernel, board=board), PASS)


def test_ports_that_end_or_restart_the_machine(tmp_path: Path) -> None:
    """Nothing is spared, and interrupts come; a guest may then well restart or interrupt itself until its time is over."""
    kernel = build(tmp_path, "hostile_registers", ATTACK=1, SPARE=0, INTERRUPTS=1, SEED=4, ROUNDS=20000)
    attacked(run(kernel, timeout_s=4), PASS, POWER_OFF, CRASHED, TIMEOUT)


@BOARDS
@pytest.mark.parametrize("interrupts", [0, 1])
def test_random_mmio_accesses(tmp_path: Path, board: str, interrupts: int) -> None:
    """Registers of every device, holes, and physical addresses that no machine has; all sizes, atomics, strings, SSE."""
    kernel = build(tmp_path, "hostile_registers", ATTACK=2, SPARE=1, INTERRUPTS=interrupts, SEED=5, ROUNDS=20000)
    attacked(run(kernel, board=board), PASS)


@pytest.mark.parametrize("spare", [0, 1])
def test_random_msrs(tmp_path: Path, spare: int) -> None:
    kernel = build(tmp_path, "hostile_registers", ATTACK=3, SPARE=spare, INTERRUPTS=1, SEED=6, ROUNDS=20000)
    attacked(run(kernel), PASS)


@BOARDS
def test_wild_virtqueues(tmp_path: Path, board: str) -> None:
    """2,500 queues of 64 wild descriptors each, kicked eight times, on block, entropy and console devices."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    kernel = build(tmp_path, "hostile_virtio", SEED=1, ROUNDS=2500)
    result = attacked(run(kernel, "--disk", f"{disk},format=raw", "--device", "virtio-console", board=board), PASS)
    assert "2500 done on 3 devices" in result.console
    assert disk.stat().st_size == 1 << 20


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_system_state(tmp_path: Path, seed: int) -> None:
    """Page tables, control registers, descriptors, system MSRs: faults, double faults, and often the end of that guest."""
    kernel = build(tmp_path, "hostile_system", SEED=seed, ROUNDS=3000)
    attacked(run(kernel, timeout_s=6), PASS, CRASHED, TIMEOUT)


@pytest.mark.parametrize(("ring", "seed", "rounds"), [(3, 1, 1000), (0, 11, 1000), (0, 15, 1000), (0, 16, 1000)])
def test_random_code(tmp_path: Path, ring: int, seed: int, rounds: int) -> None:
    kernel = build(tmp_path, "hostile_code", RING=ring, SEED=seed, ROUNDS=rounds)
    result = run(kernel, timeout_s=40, environment=cache_copy(tmp_path)).sound(PEAK_BYTES)
    # Ring 0 finds the debug-exit port, too: any odd status is what it wrote there.
    assert result.status == PASS or (ring == 0 and (result.status in (POWER_OFF, CRASHED, TIMEOUT) or result.status & 1)), result.story


@BOARDS
def test_operands_stacks_code_and_tables_outside_of_ram(tmp_path: Path, board: str) -> None:
    attacked(run(build(tmp_path, "hostile_memory", CASE=0), board=board), PASS)


ENDINGS = {
    101: "IDT in a hole",
    102: "IDT in MMIO",
    103: "GDT in a hole",
    104: "page tables in a hole",
    105: "page tables beyond all physical addresses",
}


@pytest.mark.parametrize("case", ENDINGS, ids=lambda case: ENDINGS[case])
def test_guests_that_end_themselves(tmp_path: Path, case: int) -> None:
    result = attacked(run(build(tmp_path, "hostile_memory", CASE=case)), CRASHED)
    assert "triple fault" in result.messages or "the engine cannot execute it" in result.messages


SURPRISES = {
    109: "paging switched off",  # 64-bit mode refuses that
    110: "a code segment that is not of 64-bit mode",  # what was compiled for that mode does something else in this one
}


@pytest.mark.parametrize("case", SURPRISES, ids=lambda case: SURPRISES[case])
def test_guests_that_surprise_themselves(tmp_path: Path, case: int) -> None:
    attacked(run(build(tmp_path, "hostile_memory", CASE=case), timeout_s=4), FAIL, CRASHED, TIMEOUT)


FOR_EVER = {
    100: "an exception with the stack in a hole",
    106: "a page-fault handler that cannot be fetched",
    107: "a page-fault handler in MMIO",
    108: "an exception in ring 3 whose stack is in a hole",
    111: "one OUTS of 2^64 elements",
    112: "OUTS after OUTS",
    113: "STOS over MMIO",
    114: "single steps",
    115: "page faults",
}


@pytest.mark.parametrize("case", FOR_EVER, ids=lambda case: FOR_EVER[case])
def test_guests_without_an_end_are_ended_in_time(tmp_path: Path, case: int) -> None:
    """Whatever a guest is busy with, timers run on time: here the machine's own."""
    result = attacked(run(build(tmp_path, "hostile_memory", CASE=case), timeout_s=1.5), TIMEOUT, CRASHED)
    wall = result.stats["seconds"]["wall"]
    assert wall["total"] - wall["start"] < 4, result.story


def test_jumps_over_the_ends_of_the_address_space(tmp_path: Path) -> None:
    attacked(run(build(tmp_path, "hostile_memory", CASE=116)), PASS)
