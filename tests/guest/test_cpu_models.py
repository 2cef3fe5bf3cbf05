"""Every CPU model under the sequences by which programs tell generations apart, from the reset vector on."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.guest.bare import HERE, _prepare
from tests.guest.session import run

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]
GENERATIONS = {
    "8086": 0,
    "80186": 1,
    "286": 2,
    "386": 3,
    "486": 4,
    "pentium": 5,
    "pentium-mmx": 5,
    "pentium-pro": 6,
    "pentium2": 6,
    "pentium3": 6,
    "x86-64": 15,
    "x86-64-v2": 15,
}


@pytest.mark.parametrize("model", GENERATIONS)
def test_programs_find_the_generation(tmp_path: Path, model: str) -> None:
    if shutil.which("nasm") is None:
        pytest.skip("nasm is not installed here")
    rom = tmp_path / "cpu.rom"
    source = str(HERE / "cpu_rom.asm")
    subprocess.run(["nasm", "-f", "bin", "-D", f"GENERATION={GENERATIONS[model]}", "-o", str(rom), source], check=True, timeout=30)
    _prepare()
    board = "isapc" if GENERATIONS[model] < 5 else "pc"
    options = ["--cpu", model, "--board", board, "--memory", "16M", "--timeout", "30", "--device", "debug-exit", "--serial", "null"]
    status, _, messages = run("--firmware", str(rom), *options, timeout_s=60)
    found = status >> 1
    what = f"check {found - 64} failed" if found >= 64 else f"it was taken for generation {found & 31}"
    assert status & 1 and found == GENERATIONS[model], f"{what}; status {status}\n{messages}"
