"""A million (instruction, state) cases: the emulating engine's compiled stencils against the host CPU, over every form.

Every case runs as a guest program (see `engine_cpu`), so the soft TLB, the page walk and the delivery of exceptions are
judged with it.
"""

from __future__ import annotations

import pytest

from . import campaign, forms
from .engine_cpu import EngineCpu
from .host_cpu import HostCpu

PARTS = 4
CASES = 1_000_000
SHAPES = list(forms.shapes())
STATES = -(-CASES // len(SHAPES))
# Exceptions of floating point that trap make the engine leave compiled code for the interpreter, whose own test has them often.
UNMASKED = 0.002


@pytest.fixture(scope="module")
def engine() -> EngineCpu:
    return EngineCpu()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(PARTS))
def test_compiled_code_agrees_with_the_host(host: HostCpu, engine: EngineCpu, part: int) -> None:
    shapes = SHAPES[part::PARTS]
    report = campaign.run(host, shapes, STATES, seed=2000 + part, judge=campaign.engine_judge(engine), unmasked=UNMASKED)
    assert not report.failures, report.summary()
    assert report.cases >= 0.98 * CASES / PARTS


@pytest.mark.parametrize("line", campaign.regressions())
def test_regression(host: HostCpu, engine: EngineCpu, line: str) -> None:
    report = campaign.replay(host, line, campaign.engine_judge(engine))
    assert not report.failures, report.summary()
