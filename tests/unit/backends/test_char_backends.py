"""The other ends of a serial line."""

from __future__ import annotations

import gc
import os
import pty
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ringfence.backends.char.file import FileChar
from ringfence.backends.char.memory import BufferChar
from ringfence.backends.char.null import NullChar
from ringfence.backends.char.pty import BACKLOG_BYTES, PtyChar
from ringfence.backends.char.stdio import StdioConsole
from ringfence.core.errors import UserError
from tests.waiting import readable

WAIT_S = 10.0


class Guest:
    """Collects what it receives."""

    def __init__(self) -> None:
        self.data = bytearray()

    def receive(self, data: bytes) -> None:
        self.data += data


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def read_all(fd: int, size_bytes: int) -> bytes:
    data = b""
    while len(data) < size_bytes and readable(fd, WAIT_S):
        data += os.read(fd, 65536)
    return data


class Terminal:
    """A terminal whose user is the test: `user` is its other side."""

    def __init__(self) -> None:
        self.user, self.fd = pty.openpty()
        self.guest = Guest()
        self.quits = 0
        self.console = StdioConsole(self._quit, self.fd, self.fd)
        self.before = termios.tcgetattr(self.fd)

    def _quit(self) -> None:
        self.quits += 1


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.console.close()
    os.close(made.user)
    os.close(made.fd)


def test_a_terminal_is_raw_and_given_back(terminal: Terminal) -> None:
    terminal.console.start(terminal.guest.receive)
    assert not termios.tcgetattr(terminal.fd)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
    terminal.console.close()
    assert termios.tcgetattr(terminal.fd) == terminal.before
    terminal.console.close()


def test_keys_reach_the_guest_the_interrupt_key_too(terminal: Terminal) -> None:
    terminal.console.start(terminal.guest.receive)
    os.write(terminal.user, b"ls\r\x03\x1a\x1b[A")
    eventually(lambda: terminal.guest.data == b"ls\r\x03\x1a\x1b[A")
    terminal.console.write(b"out\r\nput")
    assert read_all(terminal.user, 8) == b"out\r\nput"


def test_escape_commands(terminal: Terminal) -> None:
    terminal.console.start(terminal.guest.receive)
    os.write(terminal.user, b"a\x1d\x1db\x1d?c")
    eventually(lambda: terminal.guest.data == b"a\x1dbc")
    assert b"Ctrl-]" in read_all(terminal.user, 20)
    assert terminal.quits == 0
    os.write(terminal.user, b"\x1d")
    os.write(terminal.user, b"q")
    eventually(lambda: terminal.quits == 1)
    assert terminal.guest.data == b"a\x1dbc"


def test_leaving_may_close_the_console_itself(terminal: Terminal) -> None:
    done = threading.Event()

    def leave() -> None:
        terminal.console.close()
        done.set()

    terminal.console._on_quit = leave
    terminal.console.start(terminal.guest.receive)
    os.write(terminal.user, b"\x1dq")
    assert done.wait(WAIT_S)
    assert termios.tcgetattr(terminal.fd) == terminal.before


def test_close_is_prompt(terminal: Terminal) -> None:
    terminal.console.start(terminal.guest.receive)
    begin = time.monotonic()
    terminal.console.close()
    assert time.monotonic() - begin < 1
    os.write(terminal.user, b"late")
    time.sleep(0.02)
    assert not terminal.guest.data


def test_close_frees_a_writer_whose_terminal_is_full(terminal: Terminal) -> None:
    terminal.console.start(terminal.guest.receive)
    writer = threading.Thread(target=terminal.console.write, args=(b"x" * (1 << 20),))
    writer.start()
    time.sleep(0.05)
    assert writer.is_alive()
    terminal.console.close()
    writer.join(WAIT_S)
    assert not writer.is_alive()
    termios.tcflush(terminal.fd, termios.TCIOFLUSH)


def test_size_and_its_changes(terminal: Terminal) -> None:
    termios.tcsetwinsize(terminal.fd, (50, 132))
    sizes: list[tuple[int, int]] = []
    terminal.console.on_resize = lambda columns, rows: sizes.append((columns, rows))
    terminal.console.resized()
    assert terminal.console.size() == (132, 50) and sizes == [(132, 50)]


def test_pipes_pass_everything_and_their_end_is_no_error() -> None:
    read_in, write_in = os.pipe()
    read_out, write_out = os.pipe()
    guest = Guest()
    console = StdioConsole(lambda: pytest.fail("there are no commands in a pipe"), read_in, write_out)
    console.start(guest.receive)
    data = bytes(range(256)) * 100 + b"\x1dq"
    os.write(write_in, data)
    os.close(write_in)
    eventually(lambda: guest.data == data)
    console.write(b"still here")
    assert read_all(read_out, 10) == b"still here"
    assert console.size() == (80, 24)
    console.close()
    for fd in (read_in, read_out, write_out):
        os.close(fd)


def test_input_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"commands\n" * 5000)
    guest = Guest()
    with (tmp_path / "input").open("rb") as source, (tmp_path / "output").open("wb") as target:
        console = StdioConsole(lambda: None, source.fileno(), target.fileno())
        console.start(guest.receive)
        eventually(lambda: len(guest.data) == 45000)
        console.write(b"done")
        console.close()
    assert (tmp_path / "output").read_bytes() == b"done"


def test_a_slow_reader_loses_nothing_and_one_that_left_disturbs_nobody() -> None:
    read_in, write_in = os.pipe()
    read_out, write_out = os.pipe()
    os.set_blocking(write_out, False)
    console = StdioConsole(lambda: None, read_in, write_out)
    data = os.urandom(300_000)
    writer = threading.Thread(target=console.write, args=(data,))
    writer.start()
    assert read_all(read_out, len(data)) == data
    writer.join(WAIT_S)
    os.close(read_out)
    console.write(b"into the void")
    console.close()
    for fd in (read_in, write_in, write_out):
        os.close(fd)


def test_file(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"old")
    char = FileChar(tmp_path / "log")
    char.start(lambda data: None)
    char.write(b"boot\n")
    assert (tmp_path / "log").read_bytes() == b"boot\n"
    char.close()
    char.write(b"more")
    char.close()
    assert (tmp_path / "log").read_bytes() == b"boot\n"


def test_file_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        FileChar(tmp_path / "missing" / "log")
    with pytest.raises(UserError, match="cannot be written"):
        FileChar(tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the host has no /dev/full")
def test_file_on_a_full_disk() -> None:
    char = FileChar("/dev/full")
    with pytest.warns(RuntimeWarning, match="incomplete"):
        char.write(b"x")
    char.write(b"y")
    assert char.failure is not None
    char.close()


def test_pty_both_ways() -> None:
    guest = Guest()
    char = PtyChar()
    char.start(guest.receive)
    fd = os.open(char.path, os.O_RDWR | os.O_NOCTTY)
    char.write(b"login: ")
    assert read_all(fd, 7) == b"login: "
    os.write(fd, b"root\r\x03")
    eventually(lambda: guest.data == b"root\r\x03")
    os.close(fd)
    fd = os.open(char.path, os.O_RDWR | os.O_NOCTTY)  # attached again
    os.write(fd, b"again")
    eventually(lambda: guest.data.endswith(b"again"))
    os.close(fd)
    char.close()
    char.close()


def test_pty_never_blocks_and_is_no_echo() -> None:
    guest = Guest()
    char = PtyChar()
    char.start(guest.receive)
    begin = time.monotonic()
    for number in range(2000):
        char.write(b"%08d" % number * 100)
    assert time.monotonic() - begin < WAIT_S
    fd = os.open(char.path, os.O_RDWR | os.O_NOCTTY)
    seen = b""
    while not seen.endswith(b"00001999" * 100):
        assert readable(fd, WAIT_S), "the newest output is missing"
        seen += os.read(fd, 65536)
    assert len(seen) <= BACKLOG_BYTES + 65536
    assert not guest.data
    os.close(fd)
    char.close()


def test_pty_loses_nothing_while_somebody_reads() -> None:
    char = PtyChar()
    char.start(lambda data: None)
    fd = os.open(char.path, os.O_RDWR | os.O_NOCTTY)
    data = os.urandom(BACKLOG_BYTES // 2)
    char.write(data)
    assert read_all(fd, len(data)) == data
    os.close(fd)
    char.close()


def test_threads_and_descriptors_are_given_back() -> None:
    def count() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    gc.collect()  # what earlier tests of this process left behind
    before = count()
    for started in (False, True):
        char = PtyChar()
        read_in, write_in = os.pipe()
        console = StdioConsole(lambda: None, read_in, write_in)
        for each in (char, console):
            if started:
                each.start(lambda data: None)
            each.close()
        os.close(read_in)
        os.close(write_in)
    assert all(now <= then for now, then in zip(count(), before, strict=True))  # timers of earlier tests may have ended meanwhile


def test_buffer() -> None:
    guest = Guest()
    char = BufferChar(limit_bytes=10)
    char.send(b"early ")
    char.start(guest.receive)
    char.send(b"late")
    assert guest.data == b"early late"
    assert char.read() == b"" and char.read(timeout_s=0.01) == b""
    char.write(b"0123456789")
    char.write(b"abc")
    assert char.read() == b"3456789abc"
    writer = threading.Timer(0.02, char.write, (b"later",))
    writer.start()
    assert char.read(timeout_s=WAIT_S) == b"later"
    writer.join()
    closer = threading.Timer(0.02, char.close)
    closer.start()
    assert char.read(timeout_s=None) == b""
    closer.join()
    char.send(b"nobody")
    assert guest.data == b"early late"


def test_null() -> None:
    char = NullChar()
    char.start(lambda data: pytest.fail("nothing comes from nowhere"))
    char.write(b"x")
    char.close()
