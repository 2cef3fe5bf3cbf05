"""A MachineSpec takes what a user may give and refuses the rest with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ringfence.core.errors import UserError
from ringfence.core.units import MIB
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
        ({"cpus": 2}, "cpus"),
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
