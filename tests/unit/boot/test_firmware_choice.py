"""Which ROM is meant by "seabios"."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringfence.core.errors import UserError
from ringfence.machine.boot import firmware


def test_the_isa_board_gets_the_small_seabios(tmp_path: Path) -> None:
    small, large = tmp_path / "bios.bin", tmp_path / "bios-256k.bin"
    large.touch()
    folders = (str(tmp_path / "nowhere"), str(tmp_path))
    assert firmware.find("seabios", folders) == large
    with pytest.raises(UserError, match="SeaBIOS"):
        firmware.find("seabios", folders, isa=True)
    small.touch()
    assert firmware.find("seabios", folders, isa=True) == small
    assert firmware.find("seabios", folders) == large
    assert firmware.find("/some/rom.bin", folders, isa=True) == Path("/some/rom.bin")
