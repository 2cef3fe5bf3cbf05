"""Do the judges bite?  Bodies with a planted mistake must be noticed."""

from __future__ import annotations

import random

import pytest

from ringfence.isa.x86.context import INSTRUCTIONS, Body, Context
from ringfence.isa.x86.integer import old_value, update

from . import campaign, forms, runner
from .host_cpu import HostCpu

STATES = 60


def adc_without_carry(i: Context) -> None:
    b = i[1].get()
    a = old_value(i, "add", b)
    update(i, a + b)
    i.f.adc(a, b, a + b)


def sub_with_swapped_flags(i: Context) -> None:
    b = i[1].get()
    a = old_value(i, "add", 0 - b) if i.lock else i[0].get(rmw=True)
    update(i, a - b)
    i.f.sub(b, a, b - a)


def sar_as_shr(i: Context) -> None:
    INSTRUCTIONS["shr"].body(i)


def inc_that_sets_carry(i: Context) -> None:
    a = i[0].get(rmw=True)
    i[0].set(a + 1)
    i.f.add(a, i.const(1, i.size), a + 1)


def push_of_the_new_rsp(i: Context) -> None:
    sp = i.get("rsp") - i.size // 8
    v = i[0].get()
    is_rsp = i.get("rsp").trunc(v.w) == v
    i.store(sp, is_rsp.select(sp.trunc(v.w), v).sext(i.size))
    i.put("rsp", sp)


def cmov_that_does_not_clear(i: Context) -> None:
    i[0].set(i[1].get(), when=i.f.condition(4))


def stos_upwards_only(i: Context) -> None:
    i.store(i.get("rdi"), i.get("rax", i.size))
    i.put("rdi", i.get("rdi") + i.size // 8)


def paddusb_without_saturation(i: Context) -> None:
    a = i[0].get().lanes(8)
    i[0].set((a + i[1].get().lanes(8)).v)


MUTANTS: list[tuple[str, Body]] = [
    ("adc", adc_without_carry), ("sub", sub_with_swapped_flags), ("sar", sar_as_shr), ("inc", inc_that_sets_carry),
    ("push", push_of_the_new_rsp),
    ("cmove", cmov_that_does_not_clear), ("stos", stos_upwards_only), ("paddusb", paddusb_without_saturation),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body"), MUTANTS, ids=[body.__name__ for _, body in MUTANTS])
def test_mutants_are_noticed(host: HostCpu, monkeypatch: pytest.MonkeyPatch, name: str, body: Body) -> None:
    shapes = [s for s in forms.shapes() if any(i.name == name for i in campaign.draw([s], random.Random(1)))]
    assert shapes
    assert not campaign.run(host, shapes, 4, seed=1).failures
    runner.traced.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(INSTRUCTIONS, name, INSTRUCTIONS[name]._replace(body=body))
        report = campaign.run(host, shapes, STATES, seed=1)
    runner.traced.cache_clear()
    assert report.failures, "the mutant survived"
