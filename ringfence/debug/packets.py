"""Framing of the GDB remote serial protocol (GDB manual, appendix E.1 "Overview" and E.9 "Packet Acknowledgment").

$ data # two hex digits of the sum of data      } ^ 0x20 escapes $ # } *      + and - acknowledge      0x03 interrupts
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_PACKET_BYTES = 0x4000
INTERRUPT = b"\x03"
ACK, NAK = b"+", b"-"
_ESCAPED = frozenset(b"$#}*")


class ProtocolError(Exception):
    """What came is no GDB remote protocol; the connection is of no more use."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet's data, escapes undone.  `intact`: the checksum was right."""

    data: bytes
    intact: bool


class Interrupt:
    """Ctrl-C in gdb."""


class Acknowledge:
    """`+`."""


class Repeat:
    """`-`: the last packet came damaged."""


Event = Packet | Interrupt | Acknowledge | Repeat


def frame(data: bytes) -> bytes:
    """The packet that carries `data`."""
    body = bytearray()
    for byte in data:
        if byte in _ESCAPED:
            body += bytes((0x7D, byte ^ 0x20))
        else:
            body.append(byte)
    return b"$" + bytes(body) + b"#%02x" % (sum(body) & 0xFF)


def _unescape(body: bytes) -> bytes:
    if b"}" not in body:
        return body
    first, *rest = body.split(b"}")
    if any(not part for part in rest):  # two in a row, or one at the end
        out, escaped = bytearray(), False
        for byte in body:
            if escaped:
                out.append(byte ^ 0x20)
                escaped = False
            elif byte == 0x7D:
                escaped = True
            else:
                out.append(byte)
        return bytes(out)
    return first + b"".join(bytes((part[0] ^ 0x20,)) + part[1:] for part in rest)


class Parser:
    """Bytes to events.  Never holds more than one packet's bytes; raises ProtocolError for anything else than packets."""

    def __init__(self) -> None:
        self._body: bytearray | None = None
        self._check: bytearray | None = None

    def feed(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        position = 0
        while position < len(data):
            if self._check is not None:
                self._check.append(data[position])
                position += 1
                if len(self._check) == 2:
                    events.append(self._finish())
            elif self._body is not None:
                end = data.find(b"#", position)
                self._body += data[position : len(data) if end < 0 else end]
                if len(self._body) > 2 * MAX_PACKET_BYTES:  # every byte may be escaped
                    raise ProtocolError("a packet is too long")
                position = len(data) if end < 0 else end + 1
                if end >= 0:
                    self._check = bytearray()
            else:
                events += self._between(data[position])
                position += 1
        return events

    def _between(self, byte: int) -> list[Event]:
        match byte:
            case 0x24:
                self._body = bytearray()
                return []
            case 0x03:
                return [Interrupt()]
            case 0x2B:
                return [Acknowledge()]
            case 0x2D:
                return [Repeat()]
        # A browser, a port scanner: whoever speaks something else shall not stumble into a packet later.
        raise ProtocolError(f"byte {byte:#04x} outside of a packet")

    def _finish(self) -> Packet:
        assert self._body is not None and self._check is not None
        body, check = bytes(self._body), bytes(self._check)
        self._body = self._check = None
        try:
            intact = int(check.decode("ascii"), 16) == sum(body) & 0xFF
        except ValueError:
            intact = False
        return Packet(_unescape(body), intact)
