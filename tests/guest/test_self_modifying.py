"""Guests that change code: their own, another page's, another mapping's, by stores, strings and DMA."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.guest.bare import run_program

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]
SECTORS = 2048 + 64


def test_stores_mappings_and_a_full_code_cache(tmp_path: Path) -> None:
    """700,000 generations of code are more than the engine has room for."""
    result = run_program(tmp_path, "smc", GENERATIONS=700_000)
    engine = result.stats["engine"]
    assert engine["code_cache_flushes"] >= 1 and engine["blocks_dropped"] > 700_000


def test_code_read_from_a_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"".join(struct.pack("<BIB58x", 0xB8, sector, 0xC3) * 8 for sector in range(SECTORS)))
    run_program(tmp_path, "smc_disk", "--disk", f"{disk},format=raw,readonly")
