"""The reference interpreter against the host CPU, over every user-mode form that has a body."""

from __future__ import annotations

import random

import pytest

from ringfence.isa.x86.context import INSTRUCTIONS

from . import campaign, forms, forms_legacy
from .encode import CODE_NAMES
from .host_cpu import HostCpu

PARTS = 4
STATES = 24
SHAPES = list(forms.shapes())
SPECIAL = [s for s in SHAPES if CODE_NAMES[s.code].startswith(("MOV_R64_", "MOV_CR", "MOV_DR"))]  # one code for many bodies


@pytest.mark.parametrize("part", range(PARTS))
def test_every_form_agrees_with_the_host(host: HostCpu, part: int) -> None:
    report = campaign.run(host, SHAPES[part::PARTS], STATES, seed=1000 + part)
    assert not report.failures, report.summary()
    assert report.cases >= 20 * len(SHAPES[part::PARTS])


def test_every_body_is_judged_or_excluded_with_a_reason() -> None:
    judged = {i.name for bits in (16, 32) for i in campaign.draw(list(forms_legacy.shapes(bits)), random.Random(0))}
    judged |= {instance.name for seed in range(80) for instance in campaign.draw(SHAPES if seed < 3 else SPECIAL, random.Random(seed))}
    left = {name for name in INSTRUCTIONS if name not in judged and not forms.excluded(name)}
    assert not left, f"bodies that no judge sees: {sorted(left)}"


@pytest.mark.parametrize("line", campaign.regressions())
def test_regression(host: HostCpu, line: str) -> None:
    report = campaign.replay(host, line)
    assert not report.failures, report.summary()
    assert report.cases == 1 or line.startswith("into ")  # through the IDT, which only machines have
