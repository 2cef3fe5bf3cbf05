"""Debian's installer as it starts from the net: the language screen on VGA, read and answered by keys, its picture held against
its text."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ringfence import Font, Machine, MachineSpec
from tests.guest import guests

pytestmark = [pytest.mark.guest, pytest.mark.timeout(460)]

BOOT_S = 400
WHOLE_SCREEN = re.compile(r"Select a language.*\n.*Kurdish +- +Kurd.*<Go Back>.*<Enter> activates buttons", re.DOTALL)
RED = (0xAA, 0, 0)  # of the chosen line


@pytest.mark.parametrize("architecture", ["i386", "amd64"])
def test_the_language_screen(tmp_path: Path, architecture: str) -> None:
    installer = guests.debian_installer(architecture)
    font = Font.from_bgf(installer.font.read_bytes())
    picture = tmp_path / "last.png"
    spec = MachineSpec.build(kernel=installer.kernel, initrd=installer.initrd, memory="1G", display="vnc=127.0.0.1:0", timeout=440)
    with Machine(spec) as machine:
        machine.add_font(font)
        machine.start()
        text = machine.wait_for_text(WHOLE_SCREEN, timeout_s=BOOT_S)
        assert re.search(r"\n.*C +- +No localization.*\n.*Albanian +- +Shqip.*\n.*Arabic", text)
        assert re.search(r"French +- +Français", text) and re.search(r"Greek +- +\w{8}", text)

        assert chosen(machine, font) == "English"
        machine.press("down")
        wait_for_choice(machine, font, "Esperanto")
        machine.press("up")
        machine.press("up")
        wait_for_choice(machine, font, "Dutch")
        machine.type("e")  # the next language that begins so
        wait_for_choice(machine, font, "English")
        machine.press("enter")
        text = machine.wait_for_text(re.compile(r"Select your location.*United Kingdom.*<Enter> activates", re.DOTALL), timeout_s=120)
        machine.stop()
        machine.wait(30)
        machine.screen().save(picture)
    assert compare(Image.open(picture), text, font) > 300


def wait_for_choice(machine: Machine, font: Font, wanted: str) -> None:
    deadline = time.monotonic() + 60
    while (found := chosen(machine, font)) != wanted:
        assert machine.running and time.monotonic() < deadline, f"{found} instead of {wanted} is chosen:\n{machine.screen_text()}"
        time.sleep(0.2)


def chosen(machine: Machine, font: Font) -> str | None:
    """The language whose line is the red one."""
    red = (np.asarray(machine.screen()) == RED).all(axis=2).mean(axis=1)
    lines = (machine.screen_text() or "").split("\n")
    rows = sorted({int(row) // font.height for row in np.flatnonzero(red > 0.2)})
    return lines[rows[0]].strip(" │").split(" ")[0] if len(rows) == 1 and rows[0] < len(lines) else None


def compare(picture: Image.Image, text: str, font: Font) -> int:
    """Draws the letters of the text where they belong and looks whether the picture has them there; how many there were."""
    pixels = np.asarray(picture.convert("RGB")).astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    bitmaps = {character: bitmap for bitmap, character in font.glyphs.items() if character.isascii()}
    count = 0
    for row, line in enumerate(text.split("\n")):
        for column, character in enumerate(line.ljust(pixels.shape[1] // 8)):
            cell = pixels[row * font.height : (row + 1) * font.height, column * 8 : column * 8 + 8]
            if character == " ":
                assert len(np.unique(cell)) == 1, f"something is at line {row}, column {column}, where the text has nothing:\n{text}"
            elif character in bitmaps:
                drawn: NDArray[np.uint8] = np.unpackbits(np.frombuffer(bitmaps[character], np.uint8)[:, None], axis=1).astype(bool)
                paper, ink = np.unique(cell[~drawn]), np.unique(cell[drawn])
                assert len(paper) == len(ink) == 1 and paper[0] != ink[0], f"{character!r} is not at line {row}, column {column}:\n{text}"
                count += 1
    return count
