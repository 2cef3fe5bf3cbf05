"""Guests that attack the floppy, DMA and NVMe controllers: the monitor stays whole, and the controllers serve again afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guest.bare import PASS, build, run

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]
PEAK_BYTES = 700 << 20


@pytest.mark.parametrize("seed", [1, 2])
def test_floppy_and_dma(tmp_path: Path, seed: int) -> None:
    """8 MiB of RAM: half of what the DMA controllers can address is nothing."""
    disk = tmp_path / "a.img"
    disk.write_bytes(bytes(1440 << 10))
    kernel = build(tmp_path, "hostile_floppy", SEED=seed, ROUNDS=20000)
    result = run(kernel, "--floppy", str(disk), board="pc", memory="8M").sound(PEAK_BYTES)
    assert result.status == PASS and "served after 20000" in result.console, result.story
    assert disk.stat().st_size == 1440 << 10


@pytest.mark.parametrize("seed", [1, 2])
def test_nvme(tmp_path: Path, seed: int) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    kernel = build(tmp_path, "hostile_nvme", SEED=seed, ROUNDS=400)
    result = run(kernel, "--disk", f"{disk},format=raw,if=nvme", board="pc").sound(PEAK_BYTES)
    assert result.status == PASS and "served after 400" in result.console, result.story
    assert disk.stat().st_size == 1 << 20
