"""16- and 32-bit modes: a million (instruction, state) cases of the emulating engine against the host CPU and unicorn.

    compatibility  programs of a 64-bit system in LDT segments, exactly as the host executes them
    protected      the same cases as programs of a 32-bit system: PAE paging, 32-bit gates and TSS
    virtual-8086   16-bit cases in segments of 64 KiB
    real           the same without paging and rings, between two switches of CR0.PE
    unicorn        what real mode has of its own: segment loads, far transfers, flags on the stack

See docs/decisions/0006-judges.md and 0017-judges-of-old-modes.md.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from ringfence.isa.x86.context import INSTRUCTIONS, Body, Context

from . import campaign, forms_legacy, runner
from .engine_cpu import EngineCpu
from .engine_legacy import EngineLegacy
from .forms import Shape
from .host_cpu import HostCpu
from .legacy_loop import PROTECTED, REAL_MODE, VIRTUAL
from .unicorn_cpu import UnicornCpu

UNMASKED = 0.002  # see test_engine.py
INTERPRETED_STATES = 5


class Run(NamedTuple):
    """A share of the million: the same instructions in several surroundings, one after the other, since they share compiled code."""

    shapes: tuple[Shape, ...]
    cases: dict[str, int]  # surroundings -> number of cases
    parts: int


RUNS = (
    Run(forms_legacy.shapes(32), {"compatibility": 300_000, "protected": 110_000}, 3),
    Run(forms_legacy.shapes(16), {"compatibility": 300_000, "protected": 110_000}, 3),
    Run(forms_legacy.real_shapes(), {"real": 100_000, "virtual": 100_000}, 1),
    Run(forms_legacy.privileged_shapes(), {"virtual": 2_000}, 1),
    Run(forms_legacy.real_system_shapes(), {"unicorn": 20_000}, 1),
)
KINDS = {"protected": PROTECTED, "virtual": VIRTUAL, "real": REAL_MODE, "unicorn": REAL_MODE}
# Where there is no paging, what the host's holes decide is left out; and what unicorn does outside of the window.
LEFT_OUT = {"compatibility": 0.07, "protected": 0.07, "virtual": 0.07, "real": 0.2, "unicorn": 0.3}


def _parts() -> Iterator[object]:
    for run in RUNS:
        for part in range(run.parts):
            yield pytest.param(run, part, id=f"{'-'.join(run.cases)}-{run.shapes[0].bits}-{part}")


def test_the_shares_are_a_million() -> None:
    assert sum(sum(run.cases.values()) for run in RUNS) >= 1_000_000


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("run", "part"), list(_parts()))
def test_compiled_code_agrees_with_the_judge(host: HostCpu, run: Run, part: int) -> None:
    shapes = list(run.shapes[part :: run.parts])
    for name, cases in run.cases.items():
        machine = EngineCpu() if name == "compatibility" else EngineLegacy(KINDS[name], name == "unicorn")
        judge = UnicornCpu() if name == "unicorn" else host
        states = -(-cases // len(run.shapes))
        with machine:
            report = campaign.run(judge, shapes, states, seed=3000 + part, judge=campaign.engine_judge(machine), unmasked=UNMASKED)
        assert not report.failures, f"{name}: {report.summary()}"
        assert report.cases >= (1 - LEFT_OUT[name]) * cases / run.parts, name


@pytest.mark.parametrize("bits", [16, 32])
def test_the_interpreter_agrees_with_the_host(host: HostCpu, bits: int) -> None:
    shapes = list(forms_legacy.shapes(bits))
    report = campaign.run(host, shapes, INTERPRETED_STATES, seed=bits)
    assert not report.failures, report.summary()
    assert report.cases >= 0.9 * INTERPRETED_STATES * len(shapes)


def test_every_retired_instruction_is_judged() -> None:
    shapes = [*forms_legacy.shapes(16), *forms_legacy.shapes(32)]
    judged = {i.known_as for seed in range(20) for i in campaign.draw([s for s in shapes if seed < 2 or s.memory], random.Random(seed))}
    assert not forms_legacy.LEGACY_ONLY - judged - {"pop cs", "mov cs", "pushfd", "popfd", "pushad", "popad"}


@pytest.mark.parametrize("line", campaign.regressions(real=True))
def test_regression_in_real_mode(host: HostCpu, line: str) -> None:
    with EngineLegacy(REAL_MODE) as machine:
        report = campaign.replay(host, line, campaign.engine_judge(machine))
    assert not report.failures, report.summary()


# ---- do these judges bite?
def daa_without_af(i: Context) -> None:
    al, cf = i.get("rax", 8), i.f.cf()
    high = cf | i.const(0x99, 8).ult(al)
    low = i.const(9, 8).ult(al & 15)
    step = low.select(i.const(6, 8), 0) + high.select(i.const(0x60, 8), 0)
    i.put("rax", al + step)
    i.f.result(al + step, high, i.const(0, 1), low)


def bound_unsigned(i: Context) -> None:
    w, index = i.size, i[0].get()
    low = i.load(i[1].address_beyond(0, size_bytes=w // 8), w)
    high = i.load(i[1].address_beyond(w // 8, size_bytes=w // 8), w)
    i.fault_if(index.ult(low) | high.ult(index), 5)


def push_without_limit(i: Context) -> None:
    v = i[0].get()
    v = v.sext(i.size) if i[0].kind == "i" else v
    sp = i.wrap_sp(i.sp() - v.w // 8)
    i.store((sp + i.get("ss_base")) & 0xFFFFFFFF, v)
    i.put_sp(sp)


def lods_from_ds_without_base(i: Context) -> None:
    i.put_register("rax", i.load(i.get("rsi", 32).zext(64), i.size))
    INSTRUCTIONS["lods"].body(i)


MUTANTS: list[tuple[str, int, Body]] = [
    ("daa", 16, daa_without_af), ("bound", 32, bound_unsigned), ("push", 16, push_without_limit), ("lods", 32, lods_from_ds_without_base),
]  # fmt: skip


@pytest.mark.parametrize(("name", "bits", "body"), MUTANTS, ids=[body.__name__ for _, _, body in MUTANTS])
def test_mutants_are_noticed(host: HostCpu, monkeypatch: pytest.MonkeyPatch, name: str, bits: int, body: Body) -> None:
    shapes = [s for s in forms_legacy.shapes(bits) if any(i.name == name for i in campaign.draw([s], random.Random(1)))]
    assert shapes
    runner.traced.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(INSTRUCTIONS, name, INSTRUCTIONS[name]._replace(body=body))
        report = campaign.run(host, shapes, 30, seed=1)
    runner.traced.cache_clear()
    assert report.failures, "the mutant survived"
