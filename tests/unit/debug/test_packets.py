"""Framing: what goes out comes back, and what is no packet ends the conversation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.debug.packets import MAX_PACKET_BYTES, Acknowledge, Interrupt, Packet, Parser, ProtocolError, Repeat, frame


def test_a_known_packet() -> None:
    assert frame(b"OK") == b"$OK#9a"
    assert frame(b"a#b") == b"$a}\x03b#%02x" % (sum(b"a}\x03b") & 0xFF)


@given(st.binary(max_size=300), st.integers(1, 7))
def test_any_data_survives_in_pieces_of_any_size(data: bytes, size: int) -> None:
    parser, line = Parser(), frame(data) + b"+" + frame(data)
    events = [event for k in range(0, len(line), size) for event in parser.feed(line[k : k + size])]
    assert [type(e) for e in events] == [Packet, Acknowledge, Packet]
    assert all(isinstance(e, Acknowledge) or e == Packet(data, True) for e in events)


def test_signals_between_packets() -> None:
    assert [type(e) for e in Parser().feed(b"+-\x03")] == [Acknowledge, Repeat, Interrupt]


@pytest.mark.parametrize("check", [b"00", b"zz", b"\xff\xff", b"-1", b" 9"])
def test_a_wrong_checksum_is_told(check: bytes) -> None:
    assert Parser().feed(b"$OK#" + check) == [Packet(b"OK", False)]


@pytest.mark.parametrize("line", [b"GET / HTTP/1.1\r\n", b"\r\n", b"$OK#9a\n", b"\x00"])
def test_other_protocols_are_hung_up_on(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        Parser().feed(line)


def test_an_endless_packet_takes_no_memory() -> None:
    parser = Parser()
    parser.feed(b"$" + bytes(MAX_PACKET_BYTES))
    with pytest.raises(ProtocolError):
        for _ in range(4):
            parser.feed(b"m" * MAX_PACKET_BYTES)


def test_escapes_in_a_row_and_at_the_end() -> None:
    body = b"}}}"  # an escaped brace, then an escape without anything behind it
    assert Parser().feed(b"$" + body + b"#%02x" % (sum(body) & 0xFF)) == [Packet(b"\x5d", True)]
