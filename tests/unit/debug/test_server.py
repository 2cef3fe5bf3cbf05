"""The door: one client at a time, and none of them can hurt."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import pytest

from ringfence.core.errors import UserError
from ringfence.debug.packets import frame
from ringfence.debug.server import GdbServer, parse_address
from tests.unit.debug.fakes import TRAP, FakeHost


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def server(host: FakeHost) -> Iterator[GdbServer]:
    made = GdbServer(":0", host)
    made.start()
    yield made
    made.close()


def connect(server: GdbServer) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port), timeout=5)
    client.settimeout(5)
    return client


def read(client: socket.socket, wanted: bytes) -> bytes:
    data = b""
    while wanted not in data:
        more = client.recv(4096)
        assert more, f"hung up after {data!r}, before {wanted!r}"
        data += more
    return data


def ask(client: socket.socket, packet: bytes, answer: bytes) -> None:
    client.sendall(frame(packet))
    assert read(client, frame(answer)) == b"+" + frame(answer)
    client.sendall(b"+")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":1234", ("127.0.0.1", 1234)),
        ("1234", ("127.0.0.1", 1234)),
        ("tcp::1234", ("127.0.0.1", 1234)),
        ("[::1]:7", ("::1", 7)),
        ("a:0", ("a", 0)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", ":", "host:", ":65536", ":12a", ":-1", ":\u0661"])
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(UserError):
        parse_address(text)


def test_a_port_in_use_is_the_users_error(server: GdbServer) -> None:
    with pytest.raises(UserError, match=str(server.port)):
        GdbServer(f":{server.port}", FakeHost())


def test_a_session(server: GdbServer, host: FakeHost) -> None:
    with connect(server) as client:
        ask(client, b"?", b"T05thread:1;")
        ask(client, b"m0,2", b"0000")
        client.sendall(frame(b"c"))
        assert read(client, b"+") == b"+"
        until(lambda: "resume" in host.target.calls)
        client.sendall(b"\x03")
        until(lambda: "interrupt" in host.target.calls)
        server.told(TRAP)
        assert read(client, b"#").startswith(b"$T05")
        ask(client, b"D", b"OK")
    assert host.target.calls == ["attach", "resume", "interrupt", "detach"]


def test_without_acknowledgements(server: GdbServer) -> None:
    with connect(server) as client:
        ask(client, b"QStartNoAckMode", b"OK")
        client.sendall(frame(b"qC"))
        assert read(client, frame(b"QC1")) == frame(b"QC1")


def test_a_damaged_packet_is_asked_for_again_and_an_answer_repeated(server: GdbServer) -> None:
    with connect(server) as client:
        client.sendall(b"$qC#00")
        assert read(client, b"-") == b"-"
        ask(client, b"qC", b"QC1")
        client.sendall(b"-")
        assert read(client, frame(b"QC1")) == frame(b"QC1")


def test_hanging_up_detaches_and_the_next_one_is_served(server: GdbServer, host: FakeHost) -> None:
    with connect(server) as client:
        ask(client, b"Z0,1000,1", b"OK")
    until(lambda: host.target.calls == ["attach", "detach"])
    with connect(server) as client:
        ask(client, b"qC", b"QC1")


def test_a_second_debugger_is_turned_away(server: GdbServer) -> None:
    with connect(server) as first:
        ask(first, b"qC", b"QC1")
        with connect(server) as second:
            assert second.recv(10) == b""
        ask(first, b"qC", b"QC1")


@pytest.mark.parametrize(
    "attack",
    [
        b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n$k#6b",
        b"$" + b"A" * 200_000,
        b"$" + b"}" * 200_000,
        frame(b"c") * 500,
        bytes(range(256)) * 40,
    ],
)
def test_hostile_clients_are_hung_up_on(server: GdbServer, host: FakeHost, attack: bytes) -> None:
    with connect(server) as client:
        try:
            client.sendall(attack)
            while client.recv(65536):
                pass
        except ConnectionError:
            pass
    assert "kill" not in host.target.calls
    with connect(server) as client:
        ask(client, b"qC", b"QC1")


def test_the_machines_end_is_told(server: GdbServer, host: FakeHost) -> None:
    with connect(server) as client:
        client.sendall(frame(b"c"))
        read(client, b"+")
        host.code = 85
        server.wake()
        assert read(client, b"#").startswith(b"$W55")
        assert client.recv(10) in (b"", b"b3"), "then it hangs up"
