"""When the process that compiles regions is started."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest

from ringfence.engine import regions
from ringfence.translate.code_memory import CodeMemory
from ringfence.translate.layout import FRONT_BYTES
from ringfence.translate.native_layout import MAX_SAMPLES, SAMPLE_COUNT, SAMPLES

HOT = (0x1000, 0x2000)


class Recorder:
    """In place of the compiler: what it is asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, done: Any) -> Recorder:
        return self

    def close(self) -> None:
        pass

    def submit(self, number: int, request: Any) -> None:
        self.asked.append(request.seed)


@pytest.mark.parametrize("host_cpus, expected", [(1, regions.START_SAMPLES), (2, 0)])
def test_a_vcpu_that_would_wait_for_it_must_have_been_busy_for_longer(
    monkeypatch: pytest.MonkeyPatch, host_cpus: int, expected: int
) -> None:
    """On a page that is hot all the time: `expected` further samples after those that make it hot."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(host_cpus)))
    monkeypatch.setattr(regions.region_compiler, "Compiler", recorder := Recorder())
    code = CodeMemory(16)
    page = memoryview(bytes(4096))
    maker = regions.Regions(code, None, "x86-64-v2", {}, lambda number: page, keep=False)  # type: ignore[arg-type]
    taken = 0
    table = struct.pack("<QQQ", HOT[0] + 8, HOT[1] + 8, 0) * MAX_SAMPLES
    while not recorder.asked:
        assert taken < 2 * (expected + regions.HOT_SAMPLES)
        code.state[FRONT_BYTES + SAMPLES : FRONT_BYTES + SAMPLES + len(table)] = table
        code.put(SAMPLE_COUNT, MAX_SAMPLES)
        maker.take()
        taken += MAX_SAMPLES
    assert recorder.asked == [8]
    assert 0 <= taken - (expected + regions.HOT_SAMPLES) <= MAX_SAMPLES


def test_what_was_refused_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the same run nor in the next, but it is where the code has changed."""
    monkeypatch.setenv("RINGFENCE_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    contents = bytearray(4096)
    for change, asked in ((0, 1), (0, 0), (1, 1)):
        contents[0x800] = change
        monkeypatch.setattr(regions.region_compiler, "Compiler", recorder := Recorder())
        code = CodeMemory(16)
        maker = regions.Regions(code, None, "x86-64-v2", {}, lambda number: memoryview(contents), keep=True)  # type: ignore[arg-type]
        table = struct.pack("<QQQ", HOT[0] + 8, HOT[1] + 8, 0) * MAX_SAMPLES
        for _ in range(8):
            code.state[FRONT_BYTES + SAMPLES : FRONT_BYTES + SAMPLES + len(table)] = table
            maker.take()
            for number in list(maker._requested):
                maker._answers.append((number, None))
        assert len(recorder.asked) == asked
        maker.close()
        code.close()


def test_nothing_is_asked_for_beside_a_page_that_the_compiler_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop over the end of a page would be compiled twice."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(regions.region_compiler, "Compiler", recorder := Recorder())
    code = CodeMemory(16)
    page = memoryview(bytes(4096))
    maker = regions.Regions(code, None, "x86-64-v2", {}, lambda number: page, keep=False)  # type: ignore[arg-type]
    for k in (0, 1, 2, -1):
        table = struct.pack("<QQQ", HOT[0] + 0x1000 * k, HOT[1] + 0x1000 * k + abs(k), 0) * MAX_SAMPLES
        for _ in range(6):
            code.state[FRONT_BYTES + SAMPLES : FRONT_BYTES + SAMPLES + len(table)] = table
            maker.take()
    assert recorder.asked == [0, 2]
