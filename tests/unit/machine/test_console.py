"""The console: what a guest printed can be waited for, read and typed to from a program."""

from __future__ import annotations

import threading

import pytest

from ringfence.core.errors import RingfenceError
from ringfence.machine.console import Console, ConsoleTimeout


def test_waits_for_text_that_comes_in_pieces() -> None:
    console = Console()

    def guest() -> None:
        for piece in (b"log", b"in", b": "):
            console.write(piece)

    thread = threading.Thread(target=guest)
    thread.start()
    assert console.wait_for(b"login:", 5) == b"login:"
    thread.join()
    assert console.read() == b" "
    assert console.transcript == b"login: "


def test_says_what_came_instead() -> None:
    console = Console()
    console.write(b"Kernel panic")
    with pytest.raises(ConsoleTimeout, match="Kernel panic"):
        console.wait_for(b"login:", 0.01)
    assert console.read() == b"Kernel panic"


def test_the_end_of_the_machine_ends_the_wait() -> None:
    console = Console()
    threading.Timer(0.02, console.close).start()
    with pytest.raises(ConsoleTimeout, match="ended"):
        console.wait_for(b"x", 10)
    assert console.read(None) == b""


def test_a_guest_that_prints_for_ever_takes_bounded_memory() -> None:
    console = Console(limit_bytes=1000)
    for number in range(1000):
        console.write(b"%05d\n" % number)
    assert len(console.transcript) <= 1000
    assert console.wait_for(b"00999\n", 1).endswith(b"00999\n")


def test_typing_reaches_the_guest() -> None:
    console, typed = Console(), []
    with pytest.raises(RingfenceError):
        console.send("x")
    console.start(typed.append)
    console.send("ls\n")
    assert typed == [b"ls\n"]


def test_ask_strips_the_echo() -> None:
    console = Console()

    def guest(data: bytes) -> None:
        console.write(data.replace(b"\n", b"\r\n") + b"a\r\nb\r\n# ")

    console.start(guest)
    assert console.ask("ls", b"# ", 5) == "a\nb\n"
