"""A machine's screen and keyboard for programs, with a screen, keyboard and mouse that the test holds in its hands."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringfence.backends.api import Frame, TextScreen
from ringfence.core.errors import RingfenceError, UserError
from ringfence.core.units import PAGE_BYTES
from ringfence.machine import seat as seat_module
from ringfence.machine.boards.base import Board
from ringfence.machine.machine import Machine
from ringfence.machine.screen import ScreenTimeout
from ringfence.machine.spec import MachineSpec
from tests.unit.backends.display.fakes import eventually
from tests.unit.backends.display.rfb_client import DESKTOP_SIZE, RAW, RfbClient
from tests.unit.machine.fakes import scripted, tiny_kernel
from tests.unit.machine.glyph_painter import own_font, paint


class FakeScreen:
    """`shown` is what it shows; every look is on the device thread."""

    def __init__(self) -> None:
        self.shown: list[str] | Frame = ["Booting...", ""]
        self.threads: set[str] = set()

    def frame(self) -> Frame:
        self.threads.add(threading.current_thread().name)
        return self.shown if isinstance(self.shown, Frame) else Frame(2, 1, b"\x10\x20\x30\x40\x50\x60")

    def text(self) -> TextScreen | None:
        self.threads.add(threading.current_thread().name)
        if isinstance(self.shown, Frame):
            return None
        lines = tuple(line.ljust(20) for line in self.shown)
        return TextScreen(20, len(lines), lines, (0, 0), b"\x07" * 20 * len(lines))


class SlowKeyboard:
    """Needs a moment for every key, as a guest does; loses what comes meanwhile."""

    def __init__(self) -> None:
        self.keys: list[tuple[int, bool]] = []
        self.lost = 0
        self.stuck = False
        self._free_at = 0.0

    @property
    def backlog_bytes(self) -> int:
        return int(self.stuck or time.monotonic() < self._free_at)

    def key(self, code: int, down: bool) -> None:
        if self.backlog_bytes:
            self.lost += 1
        self.keys.append((code, down))
        self._free_at = time.monotonic() + 0.003


class FakeMouse:
    def __init__(self) -> None:
        self.events: list[Any] = []

    def move(self, dx: int, dy: int, dz: int = 0) -> None:
        self.events.append((dx, dy, dz))

    def buttons(self, mask: int) -> None:
        self.events.append(mask)


class Parts:
    def __init__(self) -> None:
        self.screen, self.keyboard, self.mouse = FakeScreen(), SlowKeyboard(), FakeMouse()


@pytest.fixture
def parts() -> Parts:
    return Parts()


@pytest.fixture
def machine(tmp_path: Path, parts: Parts, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Machine]:
    made = build(tmp_path, parts, monkeypatch, **getattr(request, "param", {}))
    made.start()
    yield made
    made.close()


def build(folder: Path, parts: Parts | None, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> Machine:
    before = Board.__init__

    def with_parts(board: Board, *arguments: Any, **more: Any) -> None:
        before(board, *arguments, **more)
        board.screen = parts and parts.screen
        board.keyboard, board.mouse = parts and parts.keyboard, parts and parts.mouse

    monkeypatch.setattr(Board, "__init__", with_parts)
    spec = MachineSpec.build(kernel=tiny_kernel(folder), memory="8M", board="microvm", **fields)
    return Machine(spec, engine=scripted())


# -- looking


def test_screen_is_an_image(machine: Machine, parts: Parts) -> None:
    image = machine.screen()
    assert image.size == (2, 1) and image.mode == "RGB"
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(0x10, 0x20, 0x30), (0x40, 0x50, 0x60)]
    assert parts.screen.threads == {"ringfence-microvm"}


def test_text_of_a_text_mode(machine: Machine, parts: Parts) -> None:
    assert machine.screen_text() == "Booting...\n"
    parts.screen.shown = ["login:", "  word  "]
    assert machine.screen_text() == "login:\n  word"


def test_wait_for_text(machine: Machine, parts: Parts) -> None:
    timer = threading.Timer(0.2, lambda: setattr(parts.screen, "shown", ["deb login: ", "second"]))
    timer.start()
    assert machine.wait_for_text("login:", timeout_s=10) == "deb login:\nsecond"
    assert machine.wait_for_text(re.compile(r"l\w+:\nsec"), timeout_s=1)
    assert machine.wait_for_text("login:\nsecond", timeout_s=0)
    timer.join()


def test_waiting_in_vain_tells_what_was_seen(machine: Machine) -> None:
    with pytest.raises(ScreenTimeout, match=r"'login:' did not appear within 0.1 s.*\nBooting") as caught:
        machine.wait_for_text("login:", timeout_s=0.1)
    assert caught.value.seen == "Booting...\n"


def test_the_last_picture_can_be_seen_after_the_end(machine: Machine, parts: Parts) -> None:
    threading.Timer(0.1, machine.stop).start()
    with pytest.raises(ScreenTimeout, match="ended before"):
        machine.wait_for_text("never", timeout_s=10)
    parts.screen.shown = ["halted"]
    assert machine.wait_for_text("halted", timeout_s=0) == "halted"
    assert machine.screen().size == (2, 1)
    machine.close()
    with pytest.raises(RingfenceError, match="closed"):
        machine.screen()


def test_an_error_of_the_screen_reaches_who_asked(machine: Machine, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Frame:
        raise ValueError("no picture")

    monkeypatch.setattr(parts.screen, "frame", broken)
    with pytest.raises(ValueError, match="no picture"):
        machine.screen()
    assert machine.running


def test_text_of_a_graphics_mode_with_a_font_found_in_the_guest(machine: Machine, parts: Parts) -> None:
    table, font = own_font(16)
    picture = paint(["Welcome to the shell", "~ # echo 12345"], font, 400, 300)
    parts.screen.shown = Frame(400, 300, picture.tobytes())
    assert machine.screen_text() is None, "no font is anywhere yet"
    machine._next_font_search = 0.0
    machine.memory.write(0x345678 & ~7, table)
    text = machine.wait_for_text("# echo 12345", timeout_s=10)
    assert text.rstrip() == "Welcome to the shell\n~ # echo 12345"
    assert machine.memory.pages_touched() < machine.memory.size_bytes // PAGE_BYTES // 4, "the search takes no memory from the host"


def test_a_font_from_the_user(machine: Machine, parts: Parts) -> None:
    _, font = own_font(14)
    parts.screen.shown = Frame(300, 200, paint(["readable"], font, 300, 200).tobytes())
    machine.add_font(font)
    assert (machine.screen_text() or "").rstrip() == "readable"


# -- typing


def test_type_waits_for_the_keyboard(machine: Machine, parts: Parts) -> None:
    machine.type("aB/\n", pause_s=0)
    shift = 42
    presses = [*[(30, True), (30, False), (shift, True), (48, True), (48, False), (shift, False)], (53, True), (53, False)]
    assert parts.keyboard.keys == [*presses, (28, True), (28, False)]
    assert parts.keyboard.lost == 0


def test_long_texts_do_not_get_lost(machine: Machine, parts: Parts) -> None:
    machine.type("x" * 600, pause_s=0)
    assert parts.keyboard.keys == [(45, True), (45, False)] * 600 and not parts.keyboard.lost


def test_type_keeps_a_pause(machine: Machine) -> None:
    begun = time.monotonic()
    machine.type("abcde", pause_s=0.05)
    assert time.monotonic() - begun >= 0.2


def test_press(machine: Machine, parts: Parts) -> None:
    machine.press("Ctrl", "alt", "del")
    machine.press("F10")
    machine.press("a")
    machine.press("?")
    ctrl, alt, delete = 29, 56, 111
    assert parts.keyboard.keys[:6] == [(ctrl, True), (alt, True), (delete, True), (delete, False), (alt, False), (ctrl, False)]
    assert [code for code, down in parts.keyboard.keys[6:] if down] == [68, 30, 53]


@pytest.mark.parametrize("wrong", ["no such key", "", "ä"])
def test_wrong_keys_are_told(machine: Machine, parts: Parts, wrong: str) -> None:
    with pytest.raises(RingfenceError, match="no key"):
        machine.press("a", wrong)
    assert not parts.keyboard.keys
    with pytest.raises(RingfenceError, match="no key"):
        machine.type("abcä")
    assert not parts.keyboard.keys, "nothing is typed of what cannot be typed as a whole"


def test_a_guest_that_takes_no_keys_costs_no_memory(machine: Machine, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    parts.keyboard.stuck = True
    for _ in range(5000):
        machine._seat.key(30, True)
        machine._seat.key(30, False)
    assert machine._seat.keys_waiting <= 2 * seat_module.MOST_KEYS + 1
    monkeypatch.setattr(seat_module, "_STUCK_NS", 1)
    eventually(lambda: machine._seat.keys_waiting == 0)
    monkeypatch.setattr(seat_module, "_STUCK_NS", 1 << 40)
    parts.keyboard.stuck = False
    parts.keyboard.keys.clear()
    machine.type("a")
    assert parts.keyboard.keys == [(30, True), (30, False)]


def test_mouse(machine: Machine, parts: Parts) -> None:
    machine.mouse(5, -3)
    eventually(lambda: parts.mouse.events == [(5, -3, 0)])
    machine.mouse(wheel=1, buttons=("left", "middle"))
    machine.mouse(buttons=())
    eventually(lambda: parts.mouse.events == [(5, -3, 0), (0, 0, 1), 5, 0])
    with pytest.raises(RingfenceError, match="no button"):
        machine.mouse(buttons=("leg",))


def test_movements_are_joined_while_nobody_takes_them(machine: Machine, parts: Parts) -> None:
    held = threading.Event()
    machine._loop.post(lambda: held.wait(10) and None)
    for _ in range(10000):
        machine._seat.move(1, 2)
    machine._seat.buttons(1)
    machine._seat.move(1, 1)
    held.set()
    eventually(lambda: parts.mouse.events == [(10000, 20000, 0), 1, (1, 1, 0)])


def test_nobody_types_at_a_machine_that_does_not_run(tmp_path: Path, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    with build(tmp_path, parts, monkeypatch) as machine:
        for attempt in (lambda: machine.type("a"), lambda: machine.press("a"), lambda: machine.mouse(1)):
            with pytest.raises(RingfenceError, match="does not run"):
                attempt()
        assert machine.screen_text() == "Booting...\n", "but its screen is there"


def test_without_screen_and_keyboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with build(tmp_path, None, monkeypatch) as machine:
        machine.start()
        with pytest.raises(RingfenceError, match="no screen"):
            machine.screen()
        with pytest.raises(RingfenceError, match="no keyboard"):
            machine.type("a")
        machine.mouse(1, 1)
    with pytest.raises(UserError, match="no screen"):
        build(tmp_path, None, monkeypatch, display="vnc=127.0.0.1:0")


# -- displays


@pytest.mark.parametrize("machine", [{"display": "vnc=127.0.0.1:45917", "name": "old-pc"}], indirect=True)
def test_a_machine_serves_vnc(machine: Machine, parts: Parts) -> None:
    assert machine.vnc_address == ("127.0.0.1", 45917)
    parts.screen.shown = Frame(64, 32, np.random.default_rng(1).integers(0, 256, 64 * 32 * 3, dtype=np.uint8).tobytes())
    with RfbClient(machine.vnc_address) as client:
        assert client.name == "Ringfence old-pc"
        client.set_encodings(RAW, DESKTOP_SIZE)
        wanted = client.expected(np.frombuffer(parts.screen.shown.rgb, np.uint8).reshape(32, 64, 3))
        while not (client.pixels.shape == wanted.shape and (client.pixels == wanted).all()):
            client.ask()
            client.update()
        client.key(ord("k"), True)
        client.key(ord("k"), False)
        eventually(lambda: parts.keyboard.keys == [(37, True), (37, False)])
        machine.close()
        with pytest.raises((EOFError, ConnectionError)):
            client.receive(1)
