"""A guest that attacks the IDE channels, their bus masters and the CD-ROM drive; and boot sectors that use IDE disks by firmware."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guest.bare import PASS, build, run

pytestmark = [pytest.mark.guest, pytest.mark.timeout(240)]
PEAK_BYTES = 700 << 20


@pytest.mark.parametrize("seed", [1, 2])
def test_registers_packets_and_bus_master_tables(tmp_path: Path, seed: int) -> None:
    disk, cdrom = tmp_path / "disk.img", tmp_path / "cd.iso"
    disk.write_bytes(bytes(4 << 20))
    content = b"".join(bytes((sector * 5 + k * 3) & 0xFF for k in range(2048)) for sector in range(300))
    cdrom.write_bytes(content)
    kernel = build(tmp_path, "hostile_ide", SEED=seed, ROUNDS=10000)
    result = run(kernel, "--disk", f"{disk},format=raw,if=ide", "--cdrom", str(cdrom), board="pc").sound(PEAK_BYTES)
    assert result.status == PASS and "served after 10000" in result.console, result.story
    assert disk.stat().st_size == 4 << 20 and cdrom.read_bytes() == content
