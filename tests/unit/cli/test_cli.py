"""The command line: options to a spec, errors to statuses, and a fast start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ringfence.cli.run import RunOptions, make_spec
from ringfence.core.errors import UserError
from ringfence.core.units import GIB
from ringfence.machine.spec import DiskSpec

ROOT = Path(__file__).parents[3]
OPTIONS = RunOptions(None, "vmlinuz", (), "", (), "512M", "auto", None, "stdio", None, None, (), None, None, "shell")


def ringfence(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "ringfence", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, stdin=subprocess.DEVNULL, check=False)


def test_options_become_a_spec() -> None:
    spec = make_spec(
        OPTIONS.replace(initrd=("a", "b"), append="quiet", disks=("d.img,readonly,format=raw",), memory="1G", board="microvm", timeout=5.0)
    )
    assert spec.kernel == Path("vmlinuz") and spec.initrd == (Path("a"), Path("b")) and spec.append == "quiet"
    assert spec.disks == (DiskSpec(path=Path("d.img"), readonly=True, format="raw"),)
    assert spec.memory == GIB and spec.board == "microvm" and spec.timeout == 5.0 and spec.serial == "stdio"


@pytest.mark.parametrize(
    "options",
    [
        OPTIONS.replace(kernel=None),
        OPTIONS.replace(image="windows"),
        OPTIONS.replace(image="alpine", kernel="k"),
        OPTIONS.replace(image="alpine", kernel=None, init="systemd"),
        OPTIONS.replace(hostname="x"),
        OPTIONS.replace(overlay="x"),
        OPTIONS.replace(init="openrc"),
        OPTIONS.replace(memory="lots"),
        OPTIONS.replace(engine="warp"),
        OPTIONS.replace(disks=("d,format=vhd",)),
        OPTIONS.replace(devices=("toaster",)),
    ],
)
def test_what_cannot_be_is_told(options: RunOptions) -> None:
    with pytest.raises(UserError) as caught:
        make_spec(options)
    assert caught.value.cause and caught.value.remedy


def test_errors_are_125_with_cause_and_remedy_and_without_traceback() -> None:
    done = ringfence("run", "--kernel", "/nowhere/vmlinuz")
    assert done.returncode == 125
    assert "/nowhere/vmlinuz" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) >= 2


def test_wrong_options_are_2() -> None:
    assert ringfence("run", "--colour").returncode == 2


def test_statistics_into_a_folder_that_is_not_there_are_refused_before_the_run() -> None:
    done = ringfence("run", "--kernel", "/bin/sh", "--stats", "/nowhere/s.json")
    assert done.returncode == 125 and "/nowhere" in done.stderr


def test_help_and_version() -> None:
    text = ringfence("run", "--help").stdout
    for option in ("--kernel", "--initrd", "--append", "--disk", "--memory", "--engine", "--board", "--serial", "--timeout", "--stats"):
        assert option in text
    assert ringfence("--version").stdout.startswith("ringfence ")


def test_doctor_tells_engines_cache_and_versions() -> None:
    data = json.loads(ringfence("doctor", "--json").stdout)
    assert {"ringfence", "python", "host", "engines", "cache", "images", "packages"} <= data.keys()
    engines = {engine["name"]: engine for engine in data["engines"]}
    assert not engines["kvm"]["works"] and "no kvm engine" in engines["kvm"]["reason"]
    assert all(engine["works"] or engine["reason"] for engine in data["engines"])
    text = ringfence("doctor").stdout
    assert "emulate" in text and data["cache"]["path"].split("/")[-1] in text


def test_help_loads_no_engine() -> None:
    code = "import sys, ringfence.cli.app; print([m for m in ('llvmlite', 'iced_x86', 'rich', 'ringfence.machine') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT, check=True)
    assert "llvmlite" not in done.stdout and "iced_x86" not in done.stdout and "ringfence.machine" not in done.stdout
