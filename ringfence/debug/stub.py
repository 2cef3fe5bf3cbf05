"""GDB remote serial protocol, the stub's side: packets to answers (GDB manual, appendix E "Remote Serial Protocol").

One vCPU is one thread.  The stub runs on the machine's thread and while the vCPU stands still; what resumes the vCPU has no
answer, its answer is the stop that follows.  Whatever a client sends ends in an answer, at worst in an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ringfence.core.errors import GuestMemoryError
from ringfence.debug import monitor, paging
from ringfence.debug.packets import MAX_PACKET_BYTES
from ringfence.debug.registers import Architecture, RegisterError, architecture_of
from ringfence.debug.target import MAX_BREAKPOINTS, MAX_WATCH_BYTES, MAX_WATCHES, SIGNAL_TRAP, Stop, Target
from ringfence.engine.api import Watch

OK, UNKNOWN = b"OK", b""
_BAD, _FAULT, _FULL = b"E16", b"E0e", b"E1c"  # EINVAL, EFAULT, ENOSPC
_HEX = re.compile(rb"[0-9a-fA-F]{1,16}")
_MAX_MEMORY_BYTES = MAX_PACKET_BYTES // 2 - 16
_MASK64 = (1 << 64) - 1
_THREAD = b"1"
_STEP_INTERRUPTS_OFF = 6  # QEMU's NOIRQ and NOTIMER
_ACCESS = {b"2": (False, True), b"3": (True, False), b"4": (True, True)}  # Z packets: on_read, on_write


class BadPacket(Exception):
    """The packet is not what the protocol knows; answered with an error."""


def number(text: bytes) -> int:
    """An unsigned hexadecimal number, at most 64 bits; int() alone would take signs, blanks and underscores."""
    if not _HEX.fullmatch(text):
        raise BadPacket(text)
    return int(text, 16)


def _numbers(text: bytes, count: int) -> list[int]:
    parts = text.split(b",")
    if len(parts) != count:
        raise BadPacket(text)
    return [number(part) for part in parts]


def _bytes(text: bytes) -> bytes:
    try:
        return bytes.fromhex(text.decode("ascii")) if b" " not in text else _refuse(text)
    except ValueError as error:
        raise BadPacket(text) from error


def _refuse(text: bytes) -> bytes:
    raise BadPacket(text)


class Stub:
    """One debugger's session with one machine."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._architecture: Architecture | None = None
        self._breakpoints: dict[tuple[bytes, int], None] = {}
        self._watches: dict[tuple[bytes, int, int], Watch] = {}
        self._physical = False
        self._step_flags = 7
        self._stop = Stop(SIGNAL_TRAP)
        self._names_stops = False
        self.ended = False
        self.no_ack = False
        self._handlers: dict[bytes, Callable[[bytes], bytes | None]] = {
            b"?": lambda _: self.stop_reply(self._stop),
            b"g": self._read_all,
            b"G": self._write_all,
            b"p": self._read_one,
            b"P": self._write_one,
            b"m": self._read_memory,
            b"M": self._write_memory_hex,
            b"X": self._write_memory_binary,
            b"Z": self._insert,
            b"z": self._remove,
            b"c": self._continue,
            b"C": lambda rest: self._continue(rest.partition(b";")[2]),
            b"s": self._step,
            b"S": lambda rest: self._step(rest.partition(b";")[2]),
            b"H": lambda rest: self._thread_ok(rest[1:]) if rest[:1] in (b"g", b"c") else UNKNOWN,
            b"T": self._thread_ok,
            b"D": lambda _: self._leave(self._target.detach),
            b"k": lambda _: self._leave(self._target.kill, None),
        }
        # The longest name first: some are beginnings of others.
        self._queries: dict[bytes, Callable[[bytes], bytes | None]] = {
            b"qSupported": self._supported,
            b"QStartNoAckMode": self._start_no_ack,
            b"qXfer:features:read:": self._features,
            b"qfThreadInfo": lambda _: b"m" + _THREAD,
            b"qsThreadInfo": lambda _: b"l",
            b"qThreadExtraInfo,": lambda rest: self._target.describe().encode().hex().encode(),
            b"qAttached": lambda _: b"1",
            b"qC": lambda _: b"QC" + _THREAD,
            b"qRcmd,": self._monitor,
            b"qqemu.PhyMemMode": lambda _: b"1" if self._physical else b"0",
            b"Qqemu.PhyMemMode:": self._set_physical,
            b"qqemu.sstepbits": lambda _: b"ENABLE=1,NOIRQ=2,NOTIMER=4",
            b"qqemu.sstep": lambda _: b"0x%x" % self._step_flags,
            b"Qqemu.sstep=": self._set_step_flags,
            b"vCont?": lambda _: b"vCont;c;C;s;S;r",
            b"vCont;": self._v_cont,
            b"vKill": lambda _: self._leave(self._target.kill),
        }

    def handle(self, data: bytes) -> bytes | None:
        """The answer to one packet; empty for what is not known, None when there is none (yet)."""
        try:
            kind = data[:1]
            if kind in b"qQv":
                for name in sorted(self._queries, key=len, reverse=True):
                    if data.startswith(name):
                        return self._queries[name](data[len(name) :])
                return UNKNOWN
            handler = self._handlers.get(kind)
            return handler(data[1:]) if handler is not None else UNKNOWN
        except BadPacket:
            return _BAD

    def stop_reply(self, stop: Stop) -> bytes:
        """Tells why the vCPU stands still."""
        self._stop = stop
        extra = b"thread:" + _THREAD + b";"
        if stop.watch is not None:
            name = b"awatch" if stop.watch.on_read and stop.watch.on_write else b"rwatch" if stop.watch.on_read else b"watch"
            extra += name + b":%x;" % stop.address
        elif stop.reason == "breakpoint" and self._names_stops:
            extra += b"swbreak:;" if (b"0", stop.address) in self._breakpoints else b"hwbreak:;"
        return b"T%02x" % stop.signal + extra

    # ---- threads, and what the two sides can do
    def _thread_ok(self, thread: bytes) -> bytes:
        return OK if thread in (b"0", b"-1", _THREAD, b"01") else b"E03"

    def _supported(self, rest: bytes) -> bytes:
        self._names_stops = b"swbreak+" in rest and b"hwbreak+" in rest
        return b"PacketSize=%x;qXfer:features:read+;QStartNoAckMode+;vContSupported+;swbreak+;hwbreak+" % MAX_PACKET_BYTES

    def _start_no_ack(self, rest: bytes) -> bytes:
        self.no_ack = True
        return OK

    def _leave(self, action: Callable[[], None], answer: bytes | None = OK) -> bytes | None:
        self.ended = True
        action()
        return answer

    def _monitor(self, rest: bytes) -> bytes:
        output = monitor.command(self._target, _bytes(rest).decode("ascii", "replace"))
        return output.encode()[:_MAX_MEMORY_BYTES].hex().encode() or OK

    def _set_physical(self, rest: bytes) -> bytes:
        self._physical = bool(number(rest))
        return OK

    def _set_step_flags(self, rest: bytes) -> bytes:
        self._step_flags = number(rest.removeprefix(b"0x")) & 7
        return OK

    # ---- registers
    def architecture(self) -> Architecture:
        if self._architecture is None:
            self._architecture = architecture_of(self._target.registers(), self._target.has_long_mode)
        return self._architecture

    def _features(self, rest: bytes) -> bytes:
        name, _, place = rest.rpartition(b":")
        offset, size = _numbers(place, 2)
        if name != b"target.xml":
            return b"E00"
        xml = self.architecture().xml
        part = xml[offset : offset + min(size, _MAX_MEMORY_BYTES)]
        return (b"m" if offset + len(part) < len(xml) else b"l") + part

    def _read_all(self, rest: bytes) -> bytes:
        values = self._target.registers()
        return b"".join(r.get(values).to_bytes(r.size_bytes, "little") for r in self.architecture().registers).hex().encode()

    def _write_all(self, rest: bytes) -> bytes:
        data, values, changed, position = _bytes(rest), self._target.registers(), {}, 0
        registers = self.architecture().registers
        if len(data) != sum(r.size_bytes for r in registers):
            raise BadPacket
        try:
            for register in registers:
                value = int.from_bytes(data[position : position + register.size_bytes], "little")
                position += register.size_bytes
                if value != register.get(values):
                    changed.update(register.set(values, value))
        except RegisterError:
            return _BAD
        self._target.write_registers(changed)
        return OK

    def _read_one(self, rest: bytes) -> bytes:
        k, registers = number(rest), self.architecture().registers
        if k >= len(registers):
            return _BAD
        return registers[k].get(self._target.registers()).to_bytes(registers[k].size_bytes, "little").hex().encode()

    def _write_one(self, rest: bytes) -> bytes:
        index, _, text = rest.partition(b"=")
        k, data, registers = number(index), _bytes(text), self.architecture().registers
        if k >= len(registers) or len(data) != registers[k].size_bytes:
            raise BadPacket
        try:
            self._target.write_registers(registers[k].set(self._target.registers(), int.from_bytes(data, "little")))
        except RegisterError:
            return _BAD
        return OK

    # ---- memory
    def _pieces(self, address: int, size: int) -> list[tuple[int, int]]:
        found = paging.pieces(self._target.registers(), self._target.physical, address, size, not self._physical)
        return found or []

    def _read_memory(self, rest: bytes) -> bytes:
        """What can be read from the address on; gdb asks again for what is missing and then gets the error."""
        address, size = _numbers(rest, 2)
        out = b""
        for place, part in self._pieces(address, min(size, _MAX_MEMORY_BYTES)):
            try:
                out += self._target.physical.read(place, part)
            except GuestMemoryError:
                break
        return out.hex().encode() if out or not size else _FAULT

    def _write_memory(self, address: int, size: int, data: bytes) -> bytes:
        if len(data) != size:
            raise BadPacket
        pieces = self._pieces(address, size)
        if sum(part for _, part in pieces) != size:
            return _FAULT
        try:
            for place, part in pieces:  # nothing is written unless all can be
                self._target.physical.read(place, part)
            for place, part in pieces:
                self._target.physical.write(place, data[:part])
                data = data[part:]
        except GuestMemoryError:
            return _FAULT
        return OK

    def _write_memory_hex(self, rest: bytes) -> bytes:
        where, _, text = rest.partition(b":")
        address, size = _numbers(where, 2)
        return self._write_memory(address, size, _bytes(text))

    def _write_memory_binary(self, rest: bytes) -> bytes:
        where, _, data = rest.partition(b":")
        address, size = _numbers(where, 2)
        return self._write_memory(address, size, data)

    # ---- breakpoints and watchpoints
    def _point(self, rest: bytes) -> tuple[bytes, int, int]:
        kind, _, place = rest.partition(b",")
        if kind not in (b"0", b"1", b"2", b"3", b"4"):
            raise BadPacket
        address, size = _numbers(place.partition(b";")[0], 2)
        return kind, address, size

    def _insert(self, rest: bytes) -> bytes:
        kind, address, size = self._point(rest)
        if kind in (b"0", b"1"):
            if len(self._breakpoints) >= MAX_BREAKPOINTS and (kind, address) not in self._breakpoints:
                return _FULL
            self._breakpoints[kind, address] = None
        else:
            if not 0 < size <= MAX_WATCH_BYTES or len(self._watches) >= MAX_WATCHES:
                return _FULL
            self._watches[kind, address, size] = Watch(address, size, *_ACCESS[kind])
        self._put_points()
        return OK

    def _remove(self, rest: bytes) -> bytes:
        kind, address, size = self._point(rest)
        self._breakpoints.pop((kind, address), None)
        self._watches.pop((kind, address, size), None)
        self._put_points()
        return OK

    def _put_points(self) -> None:
        self._target.set_points(sorted({address for _, address in self._breakpoints}), list(self._watches.values()))

    # ---- running
    def _at(self, rest: bytes) -> None:
        """The optional address of `c` and `s`."""
        if rest:
            pc = next(r for r in self.architecture().registers if r.name in ("rip", "eip"))
            self._target.write_registers(pc.set(self._target.registers(), number(rest)))

    def _continue(self, rest: bytes) -> None:
        self._at(rest)
        self._target.resume()

    def _step(self, rest: bytes) -> None:
        self._at(rest)
        self._step_range(0, 0)

    def _step_range(self, first: int, end: int) -> None:
        self._target.step(first, end, not self._step_flags & _STEP_INTERRUPTS_OFF)

    def _v_cont(self, rest: bytes) -> bytes | None:
        """The first action that is for our thread counts."""
        for action in rest.split(b";"):
            verb, _, thread = action.partition(b":")
            if thread and self._thread_ok(thread) != OK:
                continue
            match verb[:1]:
                case b"c" | b"C":
                    self._target.resume()
                case b"s" | b"S":
                    self._step_range(0, 0)
                case b"r":
                    self._step_range(*_numbers(verb[1:], 2))
                case _:
                    raise BadPacket
            return None
        raise BadPacket
