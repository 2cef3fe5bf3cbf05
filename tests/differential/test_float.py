"""SSE and x87 floating point: every form in the reference interpreter against the host CPU.

States come from `states`: numbers of all classes, random rounding and precision control, FTZ, DAZ, sticky flags, stack faults,
and unmasked exceptions.  What may differ is in `compare`, and here what the host's
MXCSR has beyond the CPU model's.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from ringfence.ir.verify import verify
from ringfence.isa.x86.context import INSTRUCTIONS, trace_form
from ringfence.isa.x86.sse_float import MXCSR_MASK

from . import campaign, forms
from .forms import Instance, Shape
from .host_cpu import HostCpu, supported

MODULES = frozenset("ringfence.isa.x86." + m for m in ("sse_float", "x87", "x87_functions", "fpu_state"))
CASES = 40


def ours(shape: Shape) -> Instance | None:
    for seed in range(8):
        if instance := forms.build(shape, 0, random.Random(seed)):
            return instance if INSTRUCTIONS[instance.name].body.__module__ in MODULES else None
    return None


@pytest.fixture(scope="module")
def shapes() -> list[Shape]:
    return [shape for shape in forms.shapes() if ours(shape)]


def judge(instances: list[Instance], cases: Any, base: bytes) -> Iterator[tuple[int, list[str]]]:
    """As the campaign's, with the model's MXCSR_MASK in the host's images; bits beyond it the model refuses."""
    per = len(cases) // len(instances)
    refused = set()
    for j, case in enumerate(cases):
        name, host_mask = instances[j // per].name, int(case["out_fx"]["mxcsr_mask"])
        if int(case["out_fx"]["mxcsr"]) > MXCSR_MASK:
            refused.add(j)
        elif name.startswith("fxsave"):
            for diff in case["diff"][: case["diffs"]]:
                if int(diff["value"]) == int(case["fx"]["mxcsr"]) | host_mask << 32:
                    diff["value"] = int(case["fx"]["mxcsr"]) | MXCSR_MASK << 32
    for j, problems in campaign.interpreter_judge(instances, cases, base):
        if j not in refused:
            yield j, problems


def test_bodies_are_transactions(shapes: list[Shape]) -> None:
    for instance in filter(None, map(ours, shapes)):
        assert not verify(trace_form(instance.decoded.form).trace.ops), str(instance)


def test_every_body_has_forms(shapes: list[Shape]) -> None:
    bodies = {name for name, i in INSTRUCTIONS.items() if i.body.__module__ in MODULES}
    # Leftovers of the 8087 and 80287, which iced decodes on request only.
    assert bodies - {i.name for i in filter(None, map(ours, shapes))} <= {"fneni", "fndisi", "fnsetpm"}


@pytest.mark.skipif(bool(supported()), reason=supported() or "-")
def test_interpreter_is_the_host(host: HostCpu, shapes: list[Shape]) -> None:
    report = campaign.run(host, shapes, CASES, 11, judge)
    assert not report.failures, report.summary()
