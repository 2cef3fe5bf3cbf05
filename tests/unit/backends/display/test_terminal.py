"""The display in a terminal: keys decoded, screens painted, and both together on a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
import time
from collections.abc import Iterator

import numpy as np
import pytest

from ringfence.backends.api import Frame, TextScreen
from ringfence.backends.display.terminal import TerminalDisplay
from ringfence.backends.display.terminal_keys import KeyDecoder, Stroke
from ringfence.backends.display.terminal_paint import Painter
from ringfence.core.errors import UserError
from tests.unit.backends.display.fakes import WAIT_S, FakeSeat, eventually, noise
from tests.waiting import readable

SHIFT, CTRL, ALT = 42, 29, 56


# -- keys


@pytest.mark.parametrize(
    ("sent", "strokes"),
    [
        (b"aA1!", [(30,), (SHIFT, 30), (2,), (SHIFT, 2)]),
        (b"\r\t\x7f", [(28,), (15,), (14,)]),
        (b"\x03\x1a\x00", [(CTRL, 46), (CTRL, 44), (CTRL, 3)]),
        (b"\x1c\x1e\x1f", [(CTRL, 43), (CTRL, 7), (CTRL, 12)]),
        (b"\x1b[A\x1b[B\x1b[C\x1b[D\x1bOA", [(103,), (108,), (106,), (105,), (103,)]),
        (b"\x1b[H\x1b[F\x1b[1~\x1b[4~\x1b[2~\x1b[3~\x1b[5~\x1b[6~", [(102,), (107,), (102,), (107,), (110,), (111,), (104,), (109,)]),
        (
            b"\x1bOP\x1bOS\x1b[11~\x1b[15~\x1b[17~\x1b[21~\x1b[24~\x1b[[A\x1b[[E",
            [(59,), (62,), (59,), (63,), (64,), (68,), (88,), (59,), (63,)],
        ),
        (b"\x1b[1;5C\x1b[3;2~\x1b[1;3P\x1b[1;8A", [(CTRL, 106), (SHIFT, 111), (ALT, 59), (SHIFT, ALT, CTRL, 103)]),
        (b"\x1b[Z\x1bx\x1bX\x1bOM", [(SHIFT, 15), (ALT, 45), (ALT, SHIFT, 45), (96,)]),
        ("äa€b".encode(), [(30,), (48,)]),
        (b"\x1b[?1;2c\x1b[99~\x1b[77;1~\x1b[[Qa", [(30,)]),
        (b"\x1b[" + b"1" * 100 + b"~a", None),
    ],
)
def test_keys(sent: bytes, strokes: list[Stroke] | None) -> None:
    whole, split = KeyDecoder(), KeyDecoder()
    got = whole.feed(sent)
    assert not whole.waiting
    if strokes is not None:
        assert got == strokes
    assert [stroke for byte in sent for stroke in split.feed(bytes([byte]))] == got, "however the bytes arrive"


def test_escape_alone_waits_for_what_may_follow() -> None:
    keys = KeyDecoder()
    assert keys.feed(b"\x1b") == [] and keys.waiting
    assert keys.flush() == [(1,)] and not keys.waiting
    assert keys.feed(b"\x1b\x1b[A") == [(1,), (103,)]
    assert keys.feed(b"\x1b[") == [] and keys.flush() == [(1,), (26,)]


def test_any_bytes_decode_to_something_bounded() -> None:
    random = np.random.default_rng(4)
    keys = KeyDecoder()
    for _ in range(300):
        data = random.choice(np.frombuffer(b"\x1b\x1b[[O;0123~AZ\xff\x80\0", np.uint8), 40).tobytes()
        for stroke in keys.feed(data):
            assert all(0 < code < 128 for code in stroke)
    keys.flush()


# -- painting


def screen(lines: list[str], columns: int = 10, cursor: tuple[int, int] | None = None, attribute: int = 7) -> TextScreen:
    return TextScreen(columns, len(lines), tuple(line.ljust(columns) for line in lines), cursor, bytes([attribute]) * columns * len(lines))


class Emulator:
    """Understands just what the painter writes; an unknown sequence is an error."""

    def __init__(self, columns: int, rows: int) -> None:
        self.cells = [[(" ", "")] * columns for _ in range(rows)]
        self.x = self.y = 0
        self.cursor_shown = False
        self.columns = columns

    def write(self, text: str) -> None:
        for sequence, character in re.findall(r"\x1b\[([?0-9;]*[A-Za-z])|(.)", text, re.DOTALL):
            if character:
                assert character.isprintable(), repr(character)
                assert self.x < self.columns, "the line is longer than the terminal"
                self.cells[self.y][self.x] = (character, self.color)
                self.x += 1
            elif sequence.endswith("H"):
                self.y, self.x = (int(n) - 1 for n in sequence[:-1].split(";"))
            elif sequence.endswith("m"):
                self.color = sequence[:-1]
            elif sequence == "K":
                self.cells[self.y][self.x :] = [(" ", "")] * (self.columns - self.x)
            elif sequence == "2J":
                self.cells = [[(" ", "")] * self.columns for _ in self.cells]
            elif sequence in ("?25l", "?25h"):
                self.cursor_shown = sequence == "?25h"
            else:
                raise AssertionError(f"unknown sequence {sequence!r}")

    @property
    def lines(self) -> list[str]:
        return ["".join(character for character, _ in row).rstrip() for row in self.cells]


def test_text_is_painted_with_colours_and_cursor() -> None:
    terminal, painter = Emulator(12, 4), Painter(True)
    seen = screen(["C:\\> dir", "x"], cursor=(5, 0), attribute=0x1E)
    terminal.write(painter.paint(seen, (12, 4)))
    assert terminal.lines == ["C:\\> dir", "x", "", ""]
    assert terminal.cells[0][0] == ("C", "0;93;44"), "yellow on blue"
    assert terminal.cursor_shown and (terminal.x, terminal.y) == (5, 0)
    assert painter.paint(seen, (12, 4)) == ""
    moved = painter.paint(seen._replace(cursor=(1, 1)), (12, 4))
    terminal.write(moved)
    assert len(moved) < 20 and (terminal.x, terminal.y) == (1, 1)
    terminal.write(painter.paint(seen._replace(cursor=None), (12, 4)))
    assert not terminal.cursor_shown


def test_only_changed_lines_are_written() -> None:
    painter = Painter(True)
    painter.paint(screen(["one", "two", "three"]), (20, 5))
    out = painter.paint(screen(["one", "TWO", "three"]), (20, 5))
    assert "TWO" in out and "one" not in out and "three" not in out


def test_a_guest_says_nothing_to_the_terminal() -> None:
    terminal, painter = Emulator(12, 2), Painter(True)
    terminal.write(painter.paint(screen(["a\x1b[2Jb\x07\x9b", "\n\t\0ok"], columns=10), (12, 2)))
    assert terminal.lines == ["a [2Jb", "   ok"]


def test_a_small_terminal_shows_the_part_with_the_cursor() -> None:
    terminal, painter = Emulator(6, 3), Painter(True)
    lines = [f"line {n} abcdef" for n in range(8)]
    terminal.write(painter.paint(screen(lines, 15, cursor=(12, 7)), (6, 3)))
    assert terminal.lines == ["abcdef"] * 3
    terminal.write(painter.paint(screen(lines, 15, cursor=(0, 0)), (6, 3)))
    assert terminal.lines == ["line 0", "line 1", "line 2"]


def test_another_size_begins_anew() -> None:
    painter = Painter(True)
    painter.paint(screen(["hello"]), (20, 5))
    terminal = Emulator(10, 2)
    terminal.write(painter.paint(screen(["hello"]), (10, 2)))
    assert terminal.lines == ["hello", ""]


@pytest.mark.parametrize(("width", "height"), [(320, 200), (640, 480), (1, 1), (3, 1000), (1000, 3), (8, 4)])
@pytest.mark.parametrize("many", [True, False])
def test_pictures_fit_whatever_their_size(width: int, height: int, many: bool) -> None:
    terminal, painter = Emulator(40, 12), Painter(many)
    picture = noise(width, height)
    terminal.write(painter.paint(Frame(width, height, picture.tobytes()), (40, 12)))
    assert "▀" in terminal.lines[0]


def test_a_picture_of_nothing() -> None:
    terminal, painter = Emulator(20, 3), Painter(True)
    for width, height in ((0, 0), (0, 5), (5, 0)):
        terminal.write(painter.paint(Frame(width, height, b""), (20, 3)))
    assert terminal.lines == [""] * 3


def test_a_picture_has_the_right_colours_at_the_right_places() -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:4, :4] = (255, 0, 0)
    picture[4:, 4:] = (0, 0, 255)
    for many, red, black, blue in ((True, "2;255;0;0", "2;0;0;0", "2;0;0;255"), (False, "5;196", "5;16", "5;21")):
        terminal, painter = Emulator(2, 1), Painter(many)
        terminal.write(painter.paint(Frame(8, 8, picture.tobytes()), (2, 1)))
        assert [color for _, color in terminal.cells[0]] == [f"38;{red};48;{black}", f"38;{black};48;{blue}"]


# -- a terminal


class User:
    """Sits at the other side of a pseudo-terminal."""

    def __init__(self, columns: int = 40, rows: int = 10) -> None:
        self.fd, self.terminal = pty.openpty()
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
        self.before = termios.tcgetattr(self.terminal)
        self.seat = FakeSeat(noise(64, 32))
        self.quits = 0
        self.display = TerminalDisplay(self._quit, self.terminal, self.terminal)
        self.seen = ""

    def _quit(self) -> None:
        self.quits += 1

    def type(self, data: bytes) -> None:
        os.write(self.fd, data)

    def sees(self, wanted: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while wanted not in self.seen:
            assert time.monotonic() < deadline, f"{wanted!r} is not in {self.seen[-500:]!r}"
            if readable(self.fd, 0.1):
                self.seen += os.read(self.fd, 65536).decode(errors="replace")

    def close(self) -> None:
        self.display.close()
        self.seat.close()
        os.close(self.fd)
        os.close(self.terminal)


@pytest.fixture
def user() -> Iterator[User]:
    made = User()
    yield made
    made.close()


def test_screen_and_keys_in_a_terminal(user: User) -> None:
    user.seat.characters = screen(["A:\\>"], cursor=(4, 0))
    user.display.start(user.seat)
    user.sees("\x1b[?1049h")
    user.sees("A:\\>")
    user.type(b"d\x1b[A\x03")
    eventually(lambda: len(user.seat.keys) == 8)
    assert user.seat.keys[:4] == [(32, True), (32, False), (103, True), (103, False)]
    assert user.seat.keys[4:] == [(CTRL, True), (46, True), (46, False), (CTRL, False)]
    user.seat.characters = screen(["A:\\>dir"], cursor=(7, 0))
    user.sees("A:\\>dir")
    user.seat.characters = None
    user.sees("▀")
    user.display.close()
    user.sees("\x1b[?1049l")
    assert termios.tcgetattr(user.terminal) == user.before


def test_escape_alone_arrives_after_a_moment(user: User) -> None:
    user.display.start(user.seat)
    user.sees("\x1b[?1049h")
    user.type(b"\x1b")
    eventually(lambda: user.seat.keys == [(1, True), (1, False)])


def test_commands_to_the_monitor(user: User) -> None:
    user.seat.characters = screen(["x"])
    user.display.start(user.seat)
    user.sees("\x1b[?1049h")
    user.type(b"\x1d")
    user.sees("stop the machine")
    user.type(b"?a")  # no command: back to the guest
    eventually(lambda: len(user.seat.keys) == 2)
    user.type(b"\x1dd\x1d\x1d\x1d\x1bOQ")
    eventually(lambda: len(user.seat.keys) == 2 + 6 + 4 + 6)
    assert [code for code, down in user.seat.keys if down] == [30, CTRL, ALT, 111, CTRL, 27, CTRL, ALT, 60]
    user.type(b"\x1d\x1b")
    time.sleep(0.2)
    assert len(user.seat.keys) == 18, "Escape ends the menu and is not typed"
    assert user.quits == 0
    user.type(b"\x1dq")
    eventually(lambda: user.quits == 1)


def test_a_resized_terminal_is_painted_anew(user: User) -> None:
    user.seat.characters = screen(["resize me"])
    user.display.start(user.seat)
    user.sees("resize me")
    user.seen = ""
    fcntl.ioctl(user.terminal, termios.TIOCSWINSZ, struct.pack("4H", 5, 20, 0, 0))
    user.sees("resize me")


def test_a_still_screen_costs_little(user: User) -> None:
    user.seat.characters = screen(["still"])
    user.display.start(user.seat)
    user.sees("still")
    time.sleep(1.0)
    before = user.seat.looks
    time.sleep(0.8)
    assert 2 <= user.seat.looks - before <= 6
    user.seen = ""
    assert not readable(user.fd, 0) or not os.read(user.fd, 65536), "nothing is written while nothing changes"


def test_a_terminal_that_goes_away_does_not_end_the_guest() -> None:
    user = User()
    user.seat.characters = screen(["x"])
    user.display.start(user.seat)
    user.sees("x")
    os.close(user.fd)
    time.sleep(0.2)
    user.display.close()
    assert user.quits == 0
    user.seat.close()
    os.close(user.terminal)


def test_without_a_terminal_it_is_told(tmp_path: object) -> None:
    reader, writer = os.pipe()
    try:
        with pytest.raises(UserError, match="no terminal"):
            TerminalDisplay(lambda: None, reader, writer)
    finally:
        os.close(reader)
        os.close(writer)


def test_close_without_start_and_twice(user: User) -> None:
    user.display.close()
    user.display.close()
