"""A boot sector that uses keyboard, mouse, printer and A20 through SeaBIOS, as programs of the DOS age do; somebody types."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ringfence.core.errors import UserError
from ringfence.machine.boot import firmware
from ringfence.machine.machine import Machine
from ringfence.machine.spec import DiskSpec, MachineSpec
from tests.guest.bare import HERE

pytestmark = [pytest.mark.guest, pytest.mark.timeout(240)]

# INT 16h function 10h: scan code and character.
STROKES = {
    ("a",): "1e61",
    ("leftshift", "a"): "1e41",
    ("leftctrl", "c"): "2e03",
    ("leftalt", "x"): "2d00",
    ("up",): "48e0",
    ("leftshift", "up"): "48e0",
    ("delete",): "53e0",
    ("f1",): "3b00",
    ("f11",): "8500",
    ("leftctrl", "f12"): "8a00",
    ("enter",): "1c0d",
    ("kpenter",): "e00d",
    ("kpslash",): "e02f",
    ("102nd",): "565c",
    ("f7",): "4100",
}


def image(folder: Path) -> Path:
    code, disk = folder / "legacy16.o", folder / "legacy16.img"
    try:
        for command in (
            ["gcc", "-m32", "-c", "-o", str(code), str(HERE / "legacy16.S")],
            ["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", str(disk), str(code)],
        ):
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stderr
    except FileNotFoundError:
        pytest.skip("gcc is not installed here")
    disk.write_bytes(disk.read_bytes().ljust(1 << 20, b"\0"))
    return disk


@pytest.mark.parametrize("board", ["pc", "isapc"])
def test_a_program_of_the_dos_age(tmp_path: Path, board: str) -> None:
    try:
        firmware.find("seabios")
    except UserError as reason:
        pytest.skip(reason.cause)
    printed = tmp_path / "printed"
    spec = MachineSpec(
        disks=(DiskSpec(path=image(tmp_path), format="raw"),), board=board, memory=64 << 20, serial="null", parallel=f"file:{printed}"
    )
    with Machine(spec) as machine:
        machine.start()
        shown = machine.wait_for_text("ready", 60)
        # Shut and open by the BIOS; shut by the 8042, which the BIOS knows; open by the 8042.
        assert "A20 01001 mouse" in shown, shown
        for stroke, code in STROKES.items():
            machine.press(*stroke)
            machine.wait_for_text(code, 20)
        typed = "The Quick, [fox] 0123456789 ~!@#$%^&*()_+|\"<>?'`-=./:;\\{}"
        machine.type(typed)
        machine.mouse(5, -3)
        machine.wait_for_text("M080503", 20)
        machine.mouse(buttons=["right"])
        machine.wait_for_text("M0a0000", 20)
        machine.press("esc")
        shown = machine.wait_for_text("the end", 20)
        words = "".join(line.ljust(80) for line in shown.split("ready\n")[1].split("differences")[0].split("\n")).split()
        keys = [word for word in words if not word.startswith("M")]
        assert keys[: len(STROKES)] == list(STROKES.values())
        assert bytes.fromhex("".join(word[2:] for word in keys[len(STROKES) : -1])).decode() == typed
        assert "differences 00" in shown
        machine.stop()
    assert printed.read_bytes() == b"through INT 17h\r\n"
