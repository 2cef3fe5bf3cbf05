"""What a start does without: libraries that take long to load, and that a machine at which nobody looks never needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.machine.fakes import tiny_kernel

ROOT = Path(__file__).parents[3]
LATE = "numpy PIL llvmlite.binding elftools zstandard lz4 rich typer iced_x86 dataclasses inspect" + "".join(
    f" ringfence.{name}"
    for name in (
        "debug.server",
        "machine.debugging",
        "machine.fonts",
        "backends.display.vnc",
        "backends.display.terminal",
        "backends.block.qcow2_block",
        "devices.vga_render",
        "images.alpine",
        "cli.app",
        "engine.assist",
        "isa.x86.integer",
        "translate.block",
        "translate.linking",
        "devices.nvme",
        "machine.boards.isapc",
        "machine.boards.microvm",
    )
)
# The command itself; the engine is a script that ends the machine, but the real one is imported, too, and its caches opened.
COMMAND = f"""
import sys
import ringfence.engine.emulate
from ringfence.cli.main import main
from ringfence.machine import machine
from ringfence.translate.stencils import StencilStore
from tests.unit.machine.fakes import out, scripted

machine.choose_engine = lambda name: scripted(out(0xF4, 0))
StencilStore()
try:
    main()
finally:
    print(*[name for name in {LATE!r}.split() if name in sys.modules])
"""


def loaded(*arguments: str, cache: Path) -> set[str]:
    """Which of LATE a run has loaded."""
    environment = {**os.environ, "RINGFENCE_CACHE": str(cache), "RINGFENCE_RUNTIME": str(cache)}
    command = [sys.executable, "-c", COMMAND, "run", "--serial", "null", "--memory", "8M", "--device", "debug-exit", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment)
    assert done.returncode == 1, done.stderr  # of debug-exit
    return set(done.stdout.split())


@pytest.fixture
def firmware(tmp_path: Path) -> Path:
    """The script knows no firmware; any ROM will do."""
    path = tmp_path / "rom.bin"
    path.write_bytes(b"\xf4" * (64 << 10))
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


def test_a_kernel_starts_without_what_it_does_not_need(tmp_path: Path, disk: Path) -> None:
    assert loaded("--kernel", str(tiny_kernel(tmp_path)), "--disk", str(disk), cache=tmp_path) == set()


def test_a_disk_starts_without_what_it_does_not_need(tmp_path: Path, disk: Path, firmware: Path) -> None:
    assert loaded("--firmware", str(firmware), "--disk", str(disk), cache=tmp_path) == set()


def test_what_is_asked_for_is_loaded(tmp_path: Path, disk: Path, firmware: Path) -> None:
    picture = tmp_path / "end.png"
    seen = loaded("--firmware", str(firmware), "--disk", str(disk), "--screenshot-at-exit", str(picture), cache=tmp_path)
    assert {"numpy", "PIL", "ringfence.devices.vga_render"} <= seen
    assert picture.read_bytes().startswith(b"\x89PNG")
