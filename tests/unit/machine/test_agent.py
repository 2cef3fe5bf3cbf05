"""The agent's host side against a guest that is played here: jobs, ports that are shared out, and a guest that says what it likes."""

from __future__ import annotations

from typing import Any

import pytest

from ringfence.core.clock import ManualClock
from ringfence.core.errors import UserError
from ringfence.machine.agent import CONTROL_PORT, LINGER_NS, SLOTS, GuestAgent, command_words


class FakeSerial:
    """Notes what happens to ports."""

    def __init__(self) -> None:
        self.users: dict[int, Any] = {}
        self.sent: dict[int, bytes] = {}
        self.connected: set[int] = set()

    def add(self, number: int, name: str, user: Any) -> None:
        self.users[number] = user
        self.sent[number] = b""

    def connect(self, number: int) -> None:
        self.connected.add(number)

    def disconnect(self, number: int) -> None:
        self.connected.discard(number)

    def send(self, number: int, data: bytes) -> None:
        self.sent[number] += data

    def waiting_bytes(self, number: int) -> int:
        return 0

    def holds(self, number: int) -> bool:
        return False

    def go_on(self, number: int) -> None:
        pass


class Client:
    """A job's user."""

    def __init__(self) -> None:
        self.out: dict[int, bytes] = {1: b"", 2: b""}
        self.ends: list[int | None] = []

    def printed(self, stream: int, data: bytes) -> bool:
        self.out[stream] += data
        return True

    def wants_input(self) -> None:
        pass

    def ended(self, status: int | None) -> None:
        self.ends.append(status)


class Guest:
    def __init__(self) -> None:
        self.clock, self.serial = ManualClock(), FakeSerial()
        self.ready: list[bool] = []
        self.agent = GuestAgent(self.serial, self.clock, self.ready.append)  # type: ignore[arg-type]
        self._known: set[int] = set()

    def know_ports(self) -> None:
        for number in list(self.serial.users):
            if number not in self._known:
                self._known.add(number)
                self.serial.users[number].port_ready(True)

    def start(self) -> None:
        self.know_ports()
        self.serial.users[CONTROL_PORT].guest_opened(True)
        self.say(b"ready 1\n")

    def say(self, data: bytes) -> None:
        self.serial.users[CONTROL_PORT].received(data)

    def lines(self) -> list[str]:
        return self.serial.sent[CONTROL_PORT].decode().splitlines()

    def open(self, first: int, opened: bool) -> None:
        for stream in range(3):
            self.serial.users[first + stream].guest_opened(opened)


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_a_job_from_begin_to_end(guest: Guest) -> None:
    client = Client()
    job = guest.agent.start("exec ls", client)
    job.send(b"input")
    job.kill(15)
    assert guest.lines() == []
    guest.start()
    assert guest.ready == [True] and guest.lines() == ["run 1 2 3 4 exec ls"] and {2, 3, 4} <= guest.serial.connected
    assert guest.serial.sent[2] == b"\ninput"
    guest.open(2, True)
    guest.say(b"pid 1 4")
    guest.say(b"2\n")
    assert guest.lines()[1:] == ["kill 15 42"]
    guest.serial.users[3].received(b"out")
    guest.serial.users[4].received(b"err")
    guest.say(b"exit 1 143\n")
    assert client.ends == []  # its output is still open
    guest.open(2, False)
    assert client.ends == [143] and client.out == {1: b"out", 2: b"err"}
    assert not {2, 3, 4} & guest.serial.connected


def test_output_that_stays_open_is_not_waited_for_long(guest: Guest) -> None:
    client = Client()
    guest.start()
    guest.agent.start("daemon", client)
    guest.open(2, True)
    guest.say(b"exit 1 0\n")
    guest.clock.advance(LINGER_NS - 1)
    assert client.ends == []
    guest.clock.advance(1)
    assert client.ends == [0]
    # Its ports are not another's while something has them open.
    guest.serial.users[3].received(b"late")
    guest.agent.start("next", Client())
    guest.know_ports()
    assert guest.lines()[1:] == ["run 2 5 6 7 next"] and client.out[1] == b""


def test_more_jobs_than_ports_wait(guest: Guest) -> None:
    guest.start()
    clients = [Client() for _ in range(SLOTS + 5)]
    for client in clients:
        guest.agent.start("x", client)
        guest.know_ports()
    assert len(guest.lines()) == SLOTS and len(guest.serial.users) == 1 + 3 * SLOTS
    for number in range(1, SLOTS + 6):
        guest.say(b"exit %d %d\n" % (number, number % 250))
    assert [client.ends for client in clients] == [[number % 250] for number in range(1, SLOTS + 6)]


def test_an_agent_that_is_gone_takes_its_jobs_along(guest: Guest) -> None:
    guest.start()
    client, waiting = Client(), Client()
    guest.agent.start("x", client)
    guest.open(2, True)
    guest.serial.users[CONTROL_PORT].guest_opened(False)
    assert client.ends == [None] and guest.ready == [True, False]
    guest.agent.start("y", waiting)
    assert waiting.ends == []
    guest.say(b"exit 1 0\n")
    guest.open(2, False)
    guest.start()
    assert client.ends == [None] and guest.lines()[-1].endswith(" y")


def test_a_reset_of_the_guest(guest: Guest) -> None:
    guest.start()
    client = Client()
    guest.agent.start("x", client)
    for user in guest.serial.users.values():
        user.port_ready(False)
    assert client.ends == [None] and guest.ready == [True, False]


@pytest.mark.parametrize(
    "data",
    [
        b"\n\n\n", b"exit\n", b"exit 1\n", b"exit x y\n", b"exit 99 0\n", b"pid 1 -1\n", b"exit 1 99999999999\n",
        b"\xff\xfe exit 1 0\n", b"x" * 100_000, b"ready\n" * 1000, "exit \u0661 \u0662\n".encode(), b"exit 1 0 more words\n" * 3,
    ],
)  # fmt: skip
def test_a_guest_may_say_what_it_likes(guest: Guest, data: bytes) -> None:
    guest.start()
    client = Client()
    guest.agent.start("x", client)
    guest.say(data)
    guest.say(b"\nexit 1 3\n")
    assert client.ends in ([3], [0])


def test_words_for_the_shell() -> None:
    assert command_words(["a b", "c'd", "e\nf"], {"X": "1 2"}, "/t p").split("; ") == [
        "cd '/t p' || exit 126", "export X='1 2'", "set -- 'a b' 'c'\\''d' 'e'\"$NL\"'f'", "unset NL", 'exec "$@"',
    ]  # fmt: skip
    for command, environment in (([], {}), (["a\0b"], {}), (["x"], {"A B": "1"}), (["x"], {"1": "2"}), (["x"], {"A": "\0"})):
        with pytest.raises(UserError) as error:
            command_words(command, environment, None)
        assert error.value.remedy
