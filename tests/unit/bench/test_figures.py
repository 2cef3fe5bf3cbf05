"""The bench's own arithmetic: which way a ratio goes, what a wrong checksum does, what targets say."""

from __future__ import annotations

import os
import re
import sys

import pytest

from bench.figures import NATIVE, OURS, QEMU, BenchError, Row
from bench.page import page, table
from bench.process import Followed
from bench.programs import follow
from bench.resident import resident
from bench.targets import targets


def seconds(name: str, ours: float, qemu: float, group: str = "") -> Row:
    return Row(name, "s", group=group, values={OURS: [ours], QEMU: [qemu]})


def test_speed_is_above_one_where_ours_is_better() -> None:
    assert seconds("boot", 1.0, 3.0).speed(OURS, QEMU) == 3.0
    rates = Row("read", "1/s", False, values={OURS: [300.0], QEMU: [100.0]}, cpu={OURS: [1.0], QEMU: [2.0]})
    assert rates.speed(OURS, QEMU) == 3.0
    assert rates.speed(OURS, QEMU, by_cpu=True) == 2.0
    assert rates.speed(OURS, NATIVE) is None


def test_a_wrong_checksum_is_an_error() -> None:
    row = Row("sieve", "s")
    row.add(NATIVE, 1.0, checksum="aa")
    row.add(OURS, 2.0, checksum="aa")
    with pytest.raises(BenchError, match="sieve: the checksums differ"):
        row.add(QEMU, 2.0, checksum="ab")


def test_targets_are_met_missed_or_not_measured() -> None:
    rows = [seconds("matmul", 1.0, 8.5, "user space"), seconds("integer", 1.0, 0.5, "user space"), seconds("fork", 1.0, 1.2)]
    found = {target.what: target for target in targets({row.name: row for row in rows})}
    assert found["Double matmul"].met is True
    assert found["System-bound: fork"].met is False
    assert found["Warm boot"].met is None
    assert found["Compute, the slowest of them"].measured == "0.50x (integer)"
    assert found["Compute, geometric mean of the user-space programs"].measured == "2.06x"


def test_a_table_tells_medians_and_the_range() -> None:
    row = Row("fork", "s", values={NATIVE: [0.1], OURS: [1.0, 2.0, 3.0], QEMU: [4.0]})
    assert table([row])[-1] == "| fork | s | 0.100 | 4.00 | 2.00 (1.00–3.00) | 0.05 | 2.00 | – |"


def test_a_page_of_nothing_says_what_was_left_out() -> None:
    about = {
        "qemu": "QEMU",
        "python": "3",
        "processor": "CPU",
        "processors": 1,
        "kernel": "6",
        "parts": {"boot": {"notes": ["boot: no kernel"]}},
    }
    assert "* boot: no kernel" in page(about, {"boot": []}, [])


def run(code: str, timeout_s: float = 20.0) -> Followed:
    return Followed([sys.executable, "-c", code], str(min(os.sched_getaffinity(0))), timeout_s)


def test_lines_of_programs_are_found_behind_other_text() -> None:
    with run("print('ROM..begin a\\nend a 1500000000 00ff\\nbegin b\\nnoise\\nrate b 2500.5k')") as process:
        found = follow(process, ["a", "b"], lambda name: None)
        assert process.end() == 0
    assert (found["a"].seconds, found["a"].checksum, found["b"].rate) == (1.5, "00ff", 2.5005)


def test_a_program_without_figures_is_an_error_that_shows_the_output() -> None:
    with run("print('begin a\\nKernel panic')") as process, pytest.raises(BenchError, match="no figures of a(.|\n)*Kernel panic"):
        follow(process, ["a"], lambda name: None)


def test_a_command_that_hangs_is_ended() -> None:
    with run("import time; time.sleep(60)", timeout_s=0.2) as process, pytest.raises(BenchError, match="took longer"):
        process.until(b"mark")


def test_memory_is_told_by_what_it_is_for() -> None:
    code = "import mmap, os, time; fd = os.memfd_create('ram-of-test'); os.ftruncate(fd, 8 << 20)\n"
    code += "m = mmap.mmap(fd, 8 << 20); m[:] = bytes(8 << 20); print('ready', flush=True); time.sleep(60)"
    with run(code) as process:
        process.until(b"ready")
        found = resident(process.pid, re.compile("memfd:ram-of-test"))
    assert found.guest == 8.0
    assert 0 < found.pss <= found.rss < 200
