"""A differential campaign: instances of shapes, states for them, the host's verdict, and what disagrees with it.

    python -m tests.differential.campaign --states 200 --seed 7 [--engine] [--bits 16] [--only shl,adc] [--keep]

runs one over every form; `--keep` appends what it finds to regressions.txt, whose cases the test suite runs for ever.
"""

from __future__ import annotations

import argparse
import random
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import compare, forms, forms_legacy, runner, states, states_legacy
from .engine_cpu import EngineCpu
from .engine_legacy import REAL_SLOTS, EngineLegacy
from .forms import Instance, Shape
from .host_cpu import HostCpu
from .records import CASE, FOREIGN, RECORDS, SLOTS, at

REGRESSIONS = Path(__file__).with_name("regressions.txt")
_IN_BYTES = at("out_gpr")


class Failure(NamedTuple):
    """One case on which a judge and the host differ."""

    instance: Instance
    case: Any  # as the host answered
    problems: list[str]

    def __str__(self) -> str:
        return f"{runner.describe(self.instance, self.case)}\n    " + "\n    ".join(self.problems) + f"\n    {self.line()}"

    def line(self) -> str:
        """The case as a line of regressions.txt: name, slot/mode, instruction, input half of the record (zlib, hexadecimal)."""
        packed = zlib.compress(self.case.tobytes()[:_IN_BYTES], 9).hex()
        slot = (self.instance.entry - forms.entry_of(0)) // (forms.entry_of(1) - forms.entry_of(0))
        mode = "" if self.instance.bits == 64 else "/real" if self.instance.real else f"/{self.instance.bits}"
        return f"{self.instance.name.replace(' ', '_')} {slot}{mode} {self.instance.raw.hex()} {packed}"


Judge = Callable[[list[Instance], Any, bytes], Iterator[tuple[int, list[str]]]]
"""(instances in slot order, host's cases, window image) -> (index of the case, problems); an index may be missing."""


class Report:
    """What a campaign did."""

    def __init__(self) -> None:
        self.cases = 0
        self.undecided = 0
        self.shapes = 0
        self.failures: list[Failure] = []
        self.traps: Counter[int] = Counter()

    def summary(self, most: int = 12) -> str:
        names = Counter(f.instance.name for f in self.failures)
        shown: dict[str, Failure] = {}
        for failure in self.failures:
            shown.setdefault(failure.instance.name, failure)
        head = f"{len(self.failures)} of {self.cases} cases differ: {dict(names.most_common())}"
        return "\n".join([head, *map(str, list(shown.values())[:most])])


def interpreter_judge(instances: list[Instance], cases: Any, base: bytes) -> Iterator[tuple[int, list[str]]]:
    """Every case through the reference interpreter."""
    per = len(cases) // len(instances)
    got = cases.copy()
    decided = np.ones(len(cases), bool)
    for j in range(len(cases)):
        try:
            runner.interpret_case(instances[j // per], got[j], base)
        except runner.Undecided:
            decided[j] = False
        except Exception as error:  # a body or the interpreter is broken: that is a finding, and the others go on
            decided[j] = False
            yield j, [f"{type(error).__name__}: {error}"]
    yield from compared(instances, got, cases, decided)


def engine_judge(engine: EngineCpu | EngineLegacy) -> Judge:
    """Every case as a program of a guest in the emulating engine."""

    def judge(instances: list[Instance], cases: Any, base: bytes) -> Iterator[tuple[int, list[str]]]:
        engine.set_base(base)
        engine.load_code({i.entry: i.raw for i in instances}, instances[0].bits)
        got = cases.copy()
        got["trap"] = -2
        lost = engine.dangerous(cases)
        got[lost] = got[np.argmin(lost)]
        engine.run(got)
        for j in np.nonzero(compare.suspects(got, cases))[0]:
            engine.forgive(got[j], cases[j], base)
        runner.normalise_host(got, {i.entry: i for i in instances})
        low, high = (np.uint64(a) for a in FOREIGN)
        foreign = (got["trap"] == 14) & (got["cr2"] >= low) & (got["cr2"] < high)
        foreign |= (cases["trap"] == 14) & (cases["cr2"] >= low) & (cases["cr2"] < high)
        yield from compared(instances, got, cases, ~(foreign | lost | engine.undecided(got, cases)))

    return judge


def compared(instances: list[Instance], got: Any, wanted: Any, decided: Any) -> Iterator[tuple[int, list[str]]]:
    """Results of all decided cases against the host's."""
    per = len(wanted) // len(instances)
    suspect = compare.suspects(got, wanted)
    for j in np.nonzero(decided)[0]:
        yield int(j), compare.differences(instances[j // per], got[j], wanted[j]) if suspect[j] else []


def draw(shapes: list[Shape], rng: random.Random) -> list[Instance]:
    """One instance of each shape, in slots 0, 1, 2 …"""
    found: list[Instance] = []
    for shape in shapes:
        for _ in range(30):
            instance = (forms.build if shape.bits == 64 else forms_legacy.build)(shape, len(found), rng)
            if instance is not None:
                found.append(instance)
                break
    return found


def run(host: HostCpu, shapes: list[Shape], per_shape: int, seed: int, judge: Judge = interpreter_judge, unmasked: float = 0.1) -> Report:
    """`per_shape` states for each shape, all of one mode, in batches of the host's size; `unmasked`: the share of states in which
    floating-point exceptions trap."""
    report = Report()
    report.shapes = len(shapes)
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    at_once = min(RECORDS // per_shape, REAL_SLOTS if shapes[0].real else SLOTS)
    base = host.base.tobytes()
    for start in range(0, len(shapes), at_once):
        instances = draw(shapes[start : start + at_once], rng)
        if not instances:
            continue
        cases = np.zeros(per_shape * len(instances), CASE)
        host.load_code([i.raw for i in instances], bits=instances[0].bits)
        fill = states.fill if instances[0].bits == 64 else states_legacy.fill
        for k, instance in enumerate(instances):
            fill(instance, cases[k * per_shape : (k + 1) * per_shape], numbers, host.base, unmasked)
        _judge(host, instances, cases, base, judge, report)
    return report


def _judge(host: HostCpu, instances: list[Instance], cases: Any, base: bytes, judge: Judge, report: Report) -> None:
    host.run(cases)
    runner.normalise_host(cases, {i.entry: i for i in instances})
    per = len(cases) // len(instances)
    report.traps.update(int(t) for t in cases["trap"])
    seen = 0
    for j, problems in judge(instances, cases, base):
        seen += 1
        if problems:
            report.failures.append(Failure(instances[j // per], cases[j].copy(), problems))
    report.cases += seen
    report.undecided += len(cases) - seen


def replay(host: HostCpu, line: str, judge: Judge = interpreter_judge) -> Report:
    """One line of regressions.txt again."""
    name, slot_text, raw, packed = line.split()
    slot, mode = int(slot_text.partition("/")[0]), slot_text.partition("/")[2]
    if mode:
        instance = forms_legacy.parse(bytes.fromhex(raw), slot, 16 if mode == "real" else int(mode), real=mode == "real")
    else:
        instance = forms.parse(bytes.fromhex(raw), slot)
    if instance is None:
        raise ValueError(f"no instruction form any more: {name} {raw}")
    cases = np.zeros(1, CASE)
    cases[:1].view("u1")[:_IN_BYTES] = np.frombuffer(zlib.decompress(bytes.fromhex(packed)), "u1")
    host.load_code([b"\x0f\x0b"] * slot + [instance.raw], bits=instance.bits)
    report = Report()
    _judge(host, [instance], cases, host.base.tobytes(), judge, report)
    return report


def regressions(real: bool = False) -> list[str]:
    """The kept cases: those of protected and long mode, or those of real-address mode."""
    lines = [line for line in REGRESSIONS.read_text().splitlines() if line and not line.startswith("#")]
    return [line for line in lines if line.split()[1].endswith("/real") == real]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares the reference interpreter with the host CPU.")
    parser.add_argument("--states", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--bits", type=int, choices=(16, 32, 64), default=64, help="the mode of the code")
    parser.add_argument("--only", default="", help="body names, separated by commas")
    parser.add_argument("--engine", action="store_true", help="compare the emulating engine, not the interpreter")
    parser.add_argument("--keep", action="store_true", help="append one failing case a body to regressions.txt")
    options = parser.parse_args()
    shapes = list(forms.shapes() if options.bits == 64 else forms_legacy.shapes(options.bits))
    if options.only:
        rng, wanted = random.Random(0), set(options.only.split(","))
        shapes = [s for s in shapes if any(i.name in wanted for i in draw([s], rng))]
    with ExitStack() as stack:
        host = stack.enter_context(HostCpu())
        judge = engine_judge(stack.enter_context(EngineCpu())) if options.engine else interpreter_judge
        report = run(host, shapes, options.states, options.seed, judge, 0.005 if options.engine else 0.1)
    print(f"seed {options.seed}, {len(shapes)} shapes, {report.undecided} undecided, traps {dict(report.traps)}")
    print(report.summary(most=1000))
    if options.keep:
        first = {f.instance.name: f for f in reversed(report.failures)}
        with REGRESSIONS.open("a") as file:
            file.writelines(f.line() + "\n" for f in first.values())


if __name__ == "__main__":
    main()
