"""Packets and their answers, with a machine that only remembers."""

from __future__ import annotations

import random
from xml.etree import ElementTree

import pytest

from ringfence.debug.packets import MAX_PACKET_BYTES
from ringfence.debug.registers import AMD64, I386, I8086, Architecture
from ringfence.debug.stub import Stub
from ringfence.debug.target import MAX_BREAKPOINTS, MAX_WATCHES, SIGNAL_TRAP, Stop
from ringfence.engine.api import Watch
from tests.unit.debug.fakes import FLAT64, FakeTarget


@pytest.fixture
def target() -> FakeTarget:
    return FakeTarget()


@pytest.fixture
def stub(target: FakeTarget) -> Stub:
    return Stub(target)


def text_of(stub: Stub, packet: bytes) -> str:
    answer = stub.handle(packet)
    assert answer is not None
    return bytes.fromhex(answer.decode()).decode()


def number_of(stub: Stub, name: str) -> int:
    return next(n for n, r in enumerate(stub.architecture().registers) if r.name == name)


def test_what_it_offers(stub: Stub) -> None:
    answer = stub.handle(b"qSupported:multiprocess+;swbreak+;hwbreak+") or b""
    for feature in (b"qXfer:features:read+", b"QStartNoAckMode+", b"vContSupported+", b"PacketSize=%x" % MAX_PACKET_BYTES):
        assert feature in answer
    assert stub.handle(b"vMustReplyEmpty") == b""
    assert not stub.no_ack and stub.handle(b"QStartNoAckMode") == b"OK" and stub.no_ack


@pytest.mark.parametrize("architecture", [AMD64, I386, I8086])
def test_the_description_is_xml_with_the_features_that_gdb_wants(architecture: Architecture) -> None:
    root = ElementTree.fromstring(architecture.xml)
    names = [feature.get("name") for feature in root.findall("feature")]
    assert names[:2] == ["org.gnu.gdb.i386.core", "org.gnu.gdb.i386.sse"]
    described = [(r.get("name"), int(r.get("bitsize") or 0)) for r in root.iter("reg")]
    assert described == [(r.name, r.bits) for r in architecture.registers]
    core = ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", "eip", "eflags", "cs", "ss", "ds", "es", "fs", "gs", "st0"]
    if architecture is I386:
        assert [name for name, _ in described[:17]] == core


def test_the_description_comes_in_pieces(stub: Stub) -> None:
    out, offset = b"", 0
    while True:
        answer = stub.handle(b"qXfer:features:read:target.xml:%x,1f3" % offset) or b""
        out += answer[1:]
        offset += len(answer) - 1
        if answer[:1] == b"l":
            break
    assert out == stub.architecture().xml
    assert stub.handle(b"qXfer:features:read:other.xml:0,100") == b"E00"


def test_the_architecture_follows_the_mode(target: FakeTarget) -> None:
    assert Stub(target).architecture() is AMD64  # nothing is decided yet
    target.values["cr0"] |= 1 << 31
    assert Stub(target).architecture() is I386  # an operating system of 32 bits
    target.values.update(FLAT64)
    assert Stub(target).architecture() is AMD64
    target.has_long_mode = False
    assert Stub(target).architecture() is I386
    target.values["cr0"] = 0x10
    assert Stub(target).architecture() is I8086


def test_all_registers_read_back_as_written(stub: Stub, target: FakeTarget) -> None:
    size = sum(r.size_bytes for r in stub.architecture().registers)
    before = stub.handle(b"g") or b""
    assert len(before) == 2 * size
    target.values.update(rax=0x1122334455667788, xmm3=1 << 127 | 5, st_physical2=0x4000_8000_0000_0000_0000)
    now = stub.handle(b"g") or b""
    assert now.startswith(b"8877665544332211")
    assert stub.handle(b"G" + before) == b"OK"
    assert target.values["rax"] == target.values["xmm3"] == target.values["st_physical2"] == 0
    assert stub.handle(b"G" + before[:-2]) == b"E16"


def test_single_registers(stub: Stub, target: FakeTarget) -> None:
    rbx = number_of(stub, "rbx")
    assert stub.handle(b"P%x=efcdab8967452301" % rbx) == b"OK"
    assert target.values["rbx"] == 0x0123456789ABCDEF
    assert stub.handle(b"p%x" % rbx) == b"efcdab8967452301"
    assert stub.handle(b"P%x=ef" % rbx) == stub.handle(b"pffff") == stub.handle(b"Pffff=00") == b"E16"


def test_the_program_counter_is_linear(stub: Stub, target: FakeTarget) -> None:
    target.values.update(cr0=0x10, cs=0xF000, cs_base=0xF0000, cs_attr=0x9B, rip=0xFFF0)
    rip = number_of(stub, "rip")
    assert stub.handle(b"p%x" % rip) == b"f0ff0f0000000000"
    stub.handle(b"P%x=0510 0f0000000000" % rip)
    assert target.values["rip"] == 0xFFF0, "blanks are no hexadecimal digits"
    assert stub.handle(b"P%x=05100f0000000000" % rip) == b"OK"
    assert target.values["rip"] == 0x1005


def test_segments(stub: Stub, target: FakeTarget) -> None:
    ds = number_of(stub, "ds")
    assert stub.handle(b"P%x=40000000" % ds) == b"E16"  # protected mode
    target.values["cr0"] = 0x10
    assert stub.handle(b"P%x=40000000" % ds) == b"OK"
    assert (target.values["ds"], target.values["ds_base"]) == (0x40, 0x400)


def test_the_x87_tag_word_is_the_full_one(stub: Stub, target: FakeTarget) -> None:
    target.values.update(ftag=0b111, st_physical0=0, st_physical1=0x3FFF << 64 | 1 << 63, st_physical2=0x7FFF << 64 | 1 << 63)
    assert stub.handle(b"p%x" % number_of(stub, "ftag")) == b"e1ff0000"  # zero, valid, special, five times empty
    assert stub.handle(b"P%x=fcff0000" % number_of(stub, "ftag")) == b"OK"
    assert target.values["ftag"] == 1


def test_memory(stub: Stub, target: FakeTarget) -> None:
    target.physical.write(0x7C00, b"\x55\xaa")
    assert stub.handle(b"m7c00,4") == b"55aa0000"
    assert stub.handle(b"M7c02,2:0102") == b"OK"
    assert stub.handle(b"X7c04,3:\x24\x23\x00") == b"OK"
    assert stub.handle(b"m7c00,7") == b"55aa0102242300"
    assert stub.handle(b"mfffe,10") == b"0000", "what can be read is given"
    assert stub.handle(b"m10000,1") == stub.handle(b"Mffff,2:0102") == b"E0e"
    assert target.physical.bytes[0xFFFF] == 0, "nothing is written when not all can be"
    assert stub.handle(b"M0,2:01") == b"E16"
    assert len(stub.handle(b"m0,ffffffffffffffff") or b"") < MAX_PACKET_BYTES


def test_memory_goes_through_the_guests_page_tables(stub: Stub, target: FakeTarget) -> None:
    target.values.update(FLAT64)
    ram = target.physical
    ram.put(0x1000, 0x2003)
    ram.put(0x2000, 0x3003)
    ram.put(0x3000, 0x4003)
    ram.put(0x4000 + 8 * 5, 0x8003, 0x6003)
    ram.write(0x8FFE, b"ab")
    ram.write(0x6000, b"cd")
    assert stub.handle(b"m5ffe,4") == b"abcd".hex().encode()
    assert stub.handle(b"m6fff,2") == b"00"
    assert stub.handle(b"m7000,1") == stub.handle(b"m800000000000,1") == b"E0e"
    assert stub.handle(b"M6ffe,4:00000000") == b"E0e"
    assert stub.handle(b"Qqemu.PhyMemMode:1") == b"OK"
    assert stub.handle(b"qqemu.PhyMemMode") == b"1"
    assert stub.handle(b"m6000,2") == b"cd".hex().encode()


def test_breakpoints_and_watchpoints(stub: Stub, target: FakeTarget) -> None:
    for packet in (b"Z0,1000,1", b"Z1,1000,1", b"Z1,7c00,1", b"Z2,20,4", b"Z3,24,8", b"Z4,30,1"):
        assert stub.handle(packet) == b"OK"
    breakpoints, watches = target.points
    assert breakpoints == [0x1000, 0x7C00]
    assert watches == [Watch(0x20, 4, False, True), Watch(0x24, 8, True, False), Watch(0x30, 1, True, True)]
    for packet in (b"z0,1000,1", b"z2,20,4", b"z2,20,4", b"z4,30,1"):
        assert stub.handle(packet) == b"OK"
    assert target.points == ([0x1000, 0x7C00], [Watch(0x24, 8, True, False)])
    assert stub.handle(b"Z5,1,1") == stub.handle(b"Z0,1") == b"E16"


def test_points_are_bounded(stub: Stub, target: FakeTarget) -> None:
    answers = [stub.handle(b"Z0,%x,1" % n) for n in range(MAX_BREAKPOINTS + 3)]
    assert answers.count(b"OK") == MAX_BREAKPOINTS and answers[-1] == b"E1c"
    answers = [stub.handle(b"Z2,%x,4" % n) for n in range(MAX_WATCHES + 3)]
    assert answers.count(b"OK") == MAX_WATCHES and answers[-1] == b"E1c"
    assert stub.handle(b"Z2,0,ffffffffffffffff") == stub.handle(b"Z2,0,0") == b"E1c"


@pytest.mark.parametrize(
    ("packet", "call"),
    [
        (b"c", "resume"),
        (b"C05", "resume"),
        (b"vCont;c", "resume"),
        (b"vCont;c:-1", "resume"),
        (b"s", ("step", 0, 0, False)),
        (b"vCont;s:1;c", ("step", 0, 0, False)),
        (b"vCont;s:7;c", "resume"),
        (b"vCont;r1000,1010:1", ("step", 0x1000, 0x1010, False)),
        (b"k", "kill"),
    ],
)
def test_what_resumes_has_no_answer_yet(stub: Stub, target: FakeTarget, packet: bytes, call: object) -> None:
    assert stub.handle(packet) is None
    assert target.calls == [call]


def test_going_on_somewhere_else(stub: Stub, target: FakeTarget) -> None:
    assert stub.handle(b"c7c00") is None
    assert target.values["rip"] == 0x7C00


def test_interrupts_in_steps_are_the_users_choice(stub: Stub, target: FakeTarget) -> None:
    assert stub.handle(b"qqemu.sstep") == b"0x7"
    assert stub.handle(b"Qqemu.sstep=1") == b"OK"
    assert stub.handle(b"s") is None
    assert target.calls == [("step", 0, 0, True)]


def test_leaving(stub: Stub, target: FakeTarget) -> None:
    assert stub.handle(b"D") == b"OK"
    assert target.calls == ["detach"] and stub.ended


def test_why_it_stopped(stub: Stub) -> None:
    stub.handle(b"qSupported:swbreak+;hwbreak+")
    stub.handle(b"Z0,10,1")
    assert stub.handle(b"?") == b"T05thread:1;"
    assert stub.stop_reply(Stop(SIGNAL_TRAP, "breakpoint", 0x10)) == b"T05thread:1;swbreak:;"
    assert stub.stop_reply(Stop(SIGNAL_TRAP, "breakpoint", 0x20)) == b"T05thread:1;hwbreak:;"
    watches = {b"watch": Watch(1, 1, False, True), b"rwatch": Watch(1, 1, True, False), b"awatch": Watch(1, 1, True, True)}
    for name, watch in watches.items():
        assert stub.stop_reply(Stop(SIGNAL_TRAP, "watchpoint", 0x1234, watch)) == b"T05thread:1;" + name + b":1234;"
    assert stub.handle(b"?") == b"T05thread:1;awatch:1234;"


def test_threads(stub: Stub) -> None:
    assert (stub.handle(b"qfThreadInfo"), stub.handle(b"qsThreadInfo"), stub.handle(b"qC")) == (b"m1", b"l", b"QC1")
    assert stub.handle(b"Hg1") == stub.handle(b"Hc-1") == stub.handle(b"T1") == b"OK"
    assert stub.handle(b"T2") == b"E03"
    assert text_of(stub, b"qThreadExtraInfo,1") == "vCPU 0 of a fake"


def test_monitor_commands(stub: Stub, target: FakeTarget) -> None:
    def monitor(line: str) -> str:
        return text_of(stub, b"qRcmd," + line.encode().hex().encode())

    target.values["rax"] = 0x1234
    assert "rax=0000000000001234" in monitor("info registers")
    assert "system_powerdown" in monitor("help")
    assert "unknown command" in monitor("launch missiles")
    assert monitor("gva2gpa 0x5000") == "gpa: 0x5000\n"
    assert "needs an address" in monitor("gva2gpa") and "needs an address" in monitor("gva2gpa zz")
    for line in ("reset", "system_powerdown", "quit"):
        assert stub.handle(b"qRcmd," + line.encode().hex().encode()) == b"OK"
    assert target.calls == ["reset", "power", "kill"]
    assert stub.handle(b"qRcmd,xyz") == b"E16"


def test_whatever_comes_has_an_answer(stub: Stub, target: FakeTarget) -> None:
    """Packets of the right beginnings with wrong ends."""
    random.seed(7)
    heads = [*stub._queries, *stub._handlers, b"vCont;r", b"vCont;s:", b"Z2,", b"qXfer:features:read:target.xml:"]
    for _ in range(6000):
        tail = bytes(random.choice(b"0123456789abcdefXx,;:=-+#$}\0\xff ") for _ in range(random.randrange(24)))
        answer = stub.handle(random.choice(heads) + tail)
        assert answer is None or len(answer) <= MAX_PACKET_BYTES
    assert stub.handle(b"") == b""
