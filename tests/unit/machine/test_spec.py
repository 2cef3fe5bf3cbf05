"""A MachineSpec takes what a user may give and refuses the rest with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ringfence.core.errors import UserError
from ringfence.core.units import MIB
from ringfence.machine.checked import SpecError
from ringfence.machine.spec import DiskSpec, MachineSpec


def test_defaults() -> None:
    spec = MachineSpec(kernel=Path("k"))
    assert (spec.memory, spec.engine, spec.board, spec.cpus, spec.cpu) == (512 * MIB, "auto", "pc", 1, "x86-64-v2")


def test_survives_json() -> None:
    spec = MachineSpec.build(
        kernel="k", initrd=["a", "b"], disks=(DiskSpec.parse("d,readonly"),), memory="1.5G", serial="file:/tmp/x", devices=("debug-exit",)
    )
    assert MachineSpec.model_validate_json(spec.model_dump_json()) == spec
    assert spec.memory == 1536 * MIB


def test_one_initrd_is_a_list_of_one() -> None:
    assert MachineSpec.build(kernel="k", initrd="i").initrd == (Path("i"),)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"memory": "many"}, "memory"),
        ({"memory": "1M"}, "memory"),
        ({"memory": 5 * MIB + 1}, "4 KiB"),
        ({"board": "apple"}, "board"),
        ({"engine": "warp"}, "engine"),
        ({"serial": "printer"}, "serial"),
        ({"serial": "file:"}, "serial"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": 0}, "timeout"),
        ({"cpus": 17}, "cpus"),
        ({"devices": ("toaster",)}, "devices"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part) as caught:
        MachineSpec.build(kernel="k", **values)
    assert caught.value.remedy


def test_disk_options() -> None:
    assert DiskSpec.parse("a.img") == DiskSpec(path=Path("a.img"))
    assert DiskSpec.parse("a.img,readonly,format=raw") == DiskSpec(path=Path("a.img"), readonly=True, format="raw")
    assert DiskSpec.parse("a.img,snapshot").snapshot


@pytest.mark.parametrize("text", ["", ",readonly", "a,format=vmdk", "a,fast", "a,readonly=yes", "a,"])
def test_wrong_disk_options(text: str) -> None:
    with pytest.raises(UserError):
        DiskSpec.parse(text)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"kernel": 3}, "kernel"),
        ({"kernel": "k", "initrd": 7}, "initrd"),
        ({"kernel": "k", "timeout": "soon"}, "timeout"),
        ({"kernel": "k", "timeout": float("inf")}, "timeout"),
        ({"kernel": "k", "cpus": True}, "cpus"),
        ({"kernel": "k", "memory": True}, "memory"),
        ({"kernel": "k", "gdb_wait": "yes"}, "gdb_wait"),
        ({"kernel": "k", "devices": "testdev"}, "devices"),
        ({"kernel": "k", "board": ["pc"]}, "board"),
        ({"disks": ("a.img",)}, "disks"),
        ({"disks": ({"path": "a.img", "format": "vhd"},)}, "disks.format"),
        ({"disks": ({"readonly": True},)}, "disks.path"),
        ({"append": "quiet"}, ""),
    ],
)
def test_a_program_is_told_which_field_is_wrong(values: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        MachineSpec(**values)
    assert caught.value.where == field


def test_a_spec_does_not_change() -> None:
    spec = MachineSpec(kernel=Path("k"))
    with pytest.raises(AttributeError):
        spec.memory = 8 * MIB  # type: ignore[misc]
    assert spec.replace(memory="8M").memory == 8 * MIB


@pytest.mark.parametrize(("values", "part"), [({"cpu": "486"}, "local APIC"), ({"board": "isapc"}, "one CPU")])
def test_several_cpus_need_apics(values: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        MachineSpec.build(kernel="k", cpus=2, **values)
    assert MachineSpec.build(kernel="k", cpus=16).cpus == 16
