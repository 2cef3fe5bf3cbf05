"""The screen and keyboard of a machine that firmware starts, as people see them: in a terminal, by VNC, as pictures."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ringfence import Machine, MachineSpec
from tests.guest.session import COMMAND, REPOSITORY
from tests.unit.backends.display.rfb_client import DESKTOP_SIZE, EXTENDED_KEYS, TIGHT, RfbClient
from tests.waiting import readable

SEABIOS = Path("/usr/share/seabios/bios-256k.bin")
VGA_BIOS = Path("/usr/share/seabios/vgabios-stdvga.bin")
LAST_WORDS = "No bootable device"
BOOT_S = 240  # the first start translates, and the machine may be busy

pytestmark = [
    pytest.mark.guest,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not (SEABIOS.exists() and VGA_BIOS.exists()), reason="SeaBIOS is not installed (apt: seabios)"),
]


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine(MachineSpec.build(firmware="seabios", memory="16M", display="vnc=127.0.0.1:45931")) as made:
        made.start()
        yield made


def wait_until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_vnc_shows_what_the_machine_shows_and_its_keys_arrive(machine: Machine) -> None:
    text = machine.wait_for_text(LAST_WORDS, timeout_s=BOOT_S)
    assert "SeaBIOS" in text
    assert machine.vnc_address is not None
    with RfbClient(machine.vnc_address) as client:
        client.set_encodings(TIGHT, DESKTOP_SIZE, EXTENDED_KEYS)

        def same() -> bool:
            client.ask(False)
            client.update()
            seen = np.asarray(machine.screen())
            wanted = client.expected(seen)
            # the cursor may blink in between
            return client.pixels.shape == wanted.shape and np.count_nonzero(client.pixels != wanted) <= 9 * 16

        wait_until(same)
        assert client.pixels.any()

        # The BIOS data area tells of Caps Lock (0040:0017 bit 6) and of the last key in its buffer.
        for down in (True, False):
            client.extended_key(0xFFE5, 0x3A, down)
        wait_until(lambda: machine.memory.read(0x417, 1)[0] & 0x40)
        for down in (True, False):
            client.key(ord("7"), down)
        wait_until(lambda: typed(machine)[-1:] == [(0x08, ord("7"))])


def typed(machine: Machine) -> list[tuple[int, int]]:
    """Scan codes and characters that BIOS keeps for whoever asks (INT 16h)."""
    tail = int.from_bytes(machine.memory.read(0x41C, 2), "little")
    ring = [0x41E + (tail - 0x1E - 2 * (n + 1)) % 32 for n in range(15)]
    head = int.from_bytes(machine.memory.read(0x41A, 2), "little")
    count = (tail - head) % 32 // 2
    return [(pair[1], pair[0]) for pair in reversed([machine.memory.read(place, 2) for place in ring[:count]])]


def test_what_a_program_types_arrives_in_order(machine: Machine) -> None:
    machine.wait_for_text(LAST_WORDS, timeout_s=BOOT_S)
    machine.type("Hi /?\n")
    machine.press("ctrl", "c")
    machine.press("f5")
    expected = [(0x23, ord("H")), (0x17, ord("i")), (0x39, 32), (0x35, ord("/")), (0x35, ord("?")), (0x1C, 13), (0x2E, 3), (0x3F, 0)]
    wait_until(lambda: len(typed(machine)) == len(expected))
    assert typed(machine) == expected


def test_in_a_terminal(tmp_path: Path) -> None:
    user, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 25, 80, 0, 0))
    before = termios.tcgetattr(terminal)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "RINGFENCE_RUNTIME": str(tmp_path / "run")}
    picture, last = tmp_path / "now.png", tmp_path / "last.png"
    arguments = ["--firmware", "seabios", "--memory", "16M", "--name", "old", "--screenshot-at-exit", str(last)]
    child = subprocess.Popen(
        [*COMMAND, *arguments], stdin=terminal, stdout=terminal, stderr=subprocess.PIPE, env=environment, start_new_session=True
    )
    seen = ""

    def sees(wanted: str) -> bool:
        nonlocal seen
        if readable(user, 0.05):
            seen += os.read(user, 65536).decode(errors="replace")
        assert child.poll() is None, child.stderr and child.stderr.read()
        return wanted in re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", seen)

    try:
        wait_until(lambda: sees(LAST_WORDS), BOOT_S)
        command = [sys.executable, "-m", "ringfence", "screenshot", str(picture), "--machine", "old", "--text"]
        shot = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True)
        assert LAST_WORDS in shot.stdout and Image.open(picture).size == (720, 400)
        os.write(user, b"\x1dq")
        assert child.wait(60) == 130
        assert termios.tcgetattr(terminal) == before
        assert Image.open(last).size == (720, 400) and Image.open(last).getextrema() != ((0, 0),) * 3
        while readable(user, 0):
            seen += os.read(user, 65536).decode(errors="replace")
        assert seen.endswith("\x1b[?1049l"), "the terminal shows again what it showed before"
        assert not list((tmp_path / "run").iterdir())
    finally:
        child.kill()
        child.wait(10)
        if child.stderr is not None:
            child.stderr.close()
        os.close(user)
        os.close(terminal)
