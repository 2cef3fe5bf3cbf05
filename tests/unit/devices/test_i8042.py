"""8042, keyboard and mouse together, through the ports, in the sequences of operating systems and firmware."""

from __future__ import annotations

import pytest

from ringfence.bus.irq import IrqLine
from ringfence.core.clock import ManualClock
from ringfence.devices.a20 import A20Gate
from ringfence.devices.i8042 import I8042
from ringfence.devices.keymap import CODES
from ringfence.devices.ps2_keyboard import Ps2Keyboard
from ringfence.devices.ps2_mouse import Ps2Mouse
from ringfence.devices.reset import ResetControl

OBF, AUX_OBF, TIMEOUT = 0x01, 0x20, 0x40
MS = 1_000_000


class Rig:
    def __init__(self, *, with_mouse: bool = True) -> None:
        self.clock = ManualClock(now_ns=5 * 10**9)
        self.edges: list[int] = []
        self.lines = {n: IrqLine(f"irq{n}", lambda level, n=n: self.edges.append(n) if level else None) for n in (1, 12)}  # type: ignore[misc]
        self.a20_seen: list[bool] = []
        self.resets = 0
        self.in_service = False
        self.gate = A20Gate(self.a20_seen.append)
        self.keyboard = Ps2Keyboard()
        self.mouse = Ps2Mouse()
        self.kbc = I8042(
            self.lines[1].pin(),
            self.lines[12].pin(),
            self.clock,
            self.keyboard,
            self.mouse if with_mouse else None,
            self.gate,
            self.on_reset,
            lambda: self.in_service,
        )

    def on_reset(self) -> None:
        self.resets += 1

    @property
    def status(self) -> int:
        return self.kbc.command.read(0, 1)

    def data(self) -> int:
        return self.kbc.data.read(0, 1)

    def command(self, value: int, *arguments: int) -> None:
        self.kbc.command.write(0, 1, value)
        for argument in arguments:
            self.kbc.data.write(0, 1, argument)

    def send(self, *values: int) -> None:
        for value in values:
            self.kbc.data.write(0, 1, value)

    def read(self, aux: bool = False) -> int:
        """As a polling driver: waits for a byte of that side."""
        for _ in range(20):
            status = self.status
            if status & OBF:
                assert bool(status & AUX_OBF) == aux, f"status {status:#x}"
                return self.data()
            self.clock.advance(MS)
        raise AssertionError("nothing comes")

    def drain(self) -> list[int]:
        found = []
        for _ in range(64):
            if self.status & OBF:
                found.append(self.data())
            else:
                self.clock.advance(MS)
        return found

    def to_mouse(self, *values: int) -> list[int]:
        """Sends bytes to the mouse; returns what it answered."""
        for value in values:
            self.command(0xD4, value)
        return self.drain()

    def tap(self, *names: str) -> list[int]:
        for name in names:
            self.keyboard.key(CODES[name], True)
        for name in reversed(names):
            self.keyboard.key(CODES[name], False)
        return self.drain()


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.kbc.start_as_firmware()
    return rig


def test_a_dos_program_reads_set_1_by_interrupt(rig: Rig) -> None:
    rig.keyboard.key(CODES["a"], True)
    assert rig.edges == [1] and rig.status & (OBF | AUX_OBF) == OBF
    assert rig.data() == 0x1E and not rig.status & OBF
    rig.keyboard.key(CODES["a"], False)
    rig.clock.advance(MS)
    assert rig.edges == [1, 1] and rig.data() == 0x9E


def test_two_handlers_of_one_interrupt_read_the_same_byte(rig: Rig) -> None:
    rig.keyboard.key(CODES["up"], True)
    assert rig.data() == 0xE0
    rig.clock.advance(MS // 2)
    assert rig.data() == 0xE0 and rig.edges == [1]  # the BIOS, after the program's own handler
    rig.clock.advance(MS // 2)
    assert rig.edges == [1, 1] and rig.data() == 0x48


def test_a_slow_handler_still_reads_the_same_byte(rig: Rig) -> None:
    rig.keyboard.key(CODES["leftshift"], True)
    rig.keyboard.key(CODES["a"], True)
    rig.in_service = True
    assert rig.data() == 0x2A
    rig.clock.advance(30 * MS)
    assert rig.data() == 0x2A and rig.edges == [1]
    rig.send(0xEE)
    assert rig.data() == 0xEE  # replies wait for nobody: the BIOS sets its LEDs in there
    rig.in_service = False
    rig.clock.advance(MS)
    assert rig.edges == [1, 1, 1] and rig.data() == 0x1E


def test_an_interrupt_that_never_ends_holds_up_nothing_for_ever(rig: Rig) -> None:
    rig.in_service = True
    rig.keyboard.key(CODES["up"], True)
    assert rig.data() == 0xE0
    rig.clock.advance(90 * MS)
    assert not rig.status & OBF
    rig.clock.advance(20 * MS)
    assert rig.status & OBF and rig.data() == 0x48


def test_reading_nothing_gives_the_last_byte_and_disturbs_nothing(rig: Rig) -> None:
    assert rig.tap("b") == [0x30, 0xB0]
    assert rig.data() == 0xB0 and not rig.status & OBF


def test_seabios_initialises_keyboard(rig: Rig) -> None:
    """Flush, self-tests, reset with both lines off, set 2, translation on."""
    rig = Rig()
    rig.command(0xAD)
    rig.command(0xA7)
    assert rig.drain() == []
    rig.command(0xAA)
    assert rig.read() == 0x55 and rig.status & 0x04
    rig.command(0xAB)
    assert rig.read() == 0x00
    rig.command(0x60, 0x30)
    rig.send(0xFF)
    assert [rig.read(), rig.read()] == [0xFA, 0xAA]
    rig.send(0xF5)
    assert rig.read() == 0xFA
    rig.send(0xF0)
    assert rig.read() == 0xFA
    rig.send(0x02)
    assert rig.read() == 0xFA
    rig.command(0x60, 0x61)
    rig.send(0xF4)
    assert rig.read() == 0xFA
    assert rig.edges == [1]  # only the last answer came with interrupts on
    assert rig.tap("leftshift", "h") == [0x2A, 0x23, 0xA3, 0xAA]


def test_linux_probes_the_auxiliary_port(rig: Rig) -> None:
    rig.command(0x60, 0x34 | 0x40)
    rig.command(0xD3, 0x5A)
    assert rig.read(aux=True) == 0x5A
    rig.command(0xA9)
    assert rig.read() == 0x00
    rig.command(0xA7)
    rig.command(0x20)
    assert rig.read() & 0x20
    rig.command(0xA8)
    rig.command(0x20)
    assert not rig.read() & 0x20
    rig.command(0x60, 0x12 | 0x40)  # i8042_check_aux: does IRQ 12 come?
    rig.edges.clear()
    rig.command(0xD3, 0xA5)
    assert rig.edges == [12] and rig.read(aux=True) == 0xA5
    for byte in (0xF0, 0x56, 0xA4):  # an active multiplexer would answer something else
        rig.command(0xD3, byte)
        assert rig.read(aux=True) == byte


def test_identification_with_and_without_translation(rig: Rig) -> None:
    rig.send(0xF2)
    assert rig.drain() == [0xFA, 0xAB, 0x41]
    rig.command(0x60, 0x05)
    rig.send(0xF2)
    assert rig.drain() == [0xFA, 0xAB, 0x83]


def test_grub_asks_for_the_scan_code_set(rig: Rig) -> None:
    rig.command(0x60, 0x20)  # no translation, no interrupts
    rig.send(0xF0)
    assert rig.read() == 0xFA
    rig.send(0x00)
    assert [rig.read(), rig.read()] == [0xFA, 0x02]
    rig.send(0xF0)
    assert rig.read() == 0xFA
    rig.send(0x01)
    assert rig.read() == 0xFA
    assert rig.tap("left") == [0xE0, 0x4B, 0xE0, 0xCB] and rig.edges == []


def test_pause_print_screen_and_f7_translated(rig: Rig) -> None:
    assert bytes(rig.tap("pause")).hex() == "e11d45e19dc5"
    assert bytes(rig.tap("sysrq")).hex() == "e02ae037e0b7e0aa"
    assert rig.tap("f7") == [0x41, 0xC1]
    assert bytes(rig.tap("leftalt", "sysrq")).hex() == "3854d4b8"
    assert bytes(rig.tap("leftctrl", "pause")).hex() == "1de046e0c69d"


def test_a_disabled_line_holds_the_keys_back(rig: Rig) -> None:
    rig.command(0xAD)
    rig.keyboard.key(CODES["x"], True)
    rig.clock.advance(10 * MS)
    assert not rig.status & OBF and rig.edges == []
    rig.command(0x20)  # a reply comes all the same, and silently
    assert rig.data() & 0x10 and rig.edges == []
    rig.command(0xAE)
    rig.clock.advance(MS)
    assert rig.edges == [1] and rig.data() == 0x2D


def test_sending_to_the_keyboard_enables_its_line(rig: Rig) -> None:
    rig.command(0xAD)
    rig.send(0xEE)
    assert rig.read() == 0xEE
    rig.command(0x20)
    assert not rig.read() & 0x10


def test_a_reply_waits_for_the_byte_that_is_there(rig: Rig) -> None:
    rig.keyboard.key(CODES["q"], True)
    rig.command(0xC0)
    assert rig.data() == 0x10 and rig.status & OBF and rig.data() == 0xB0


def test_bytes_can_be_put_into_the_output_buffer(rig: Rig) -> None:
    rig.command(0xD2, 0x1C)
    assert rig.edges == [1] and rig.read() == 0x1C
    rig.command(0xD3, 0x1C)
    assert rig.edges == [1] and rig.read(aux=True) == 0x1C  # firmware left IRQ 12 off


def test_interrupts_follow_the_command_byte_while_a_byte_waits(rig: Rig) -> None:
    rig.command(0x60, 0x44)
    rig.keyboard.key(CODES["q"], True)
    assert rig.edges == [] and rig.status & OBF
    rig.command(0x60, 0x45)
    assert rig.edges == [1] and rig.lines[1].level
    rig.data()
    assert not rig.lines[1].level


def test_mouse_packets_come_with_irq_12(rig: Rig) -> None:
    rig.command(0x60, 0x47)
    assert rig.to_mouse(0xF4) == [0xFA]
    rig.edges.clear()
    rig.mouse.move(5, -3)
    assert rig.edges == [12] and rig.status & (OBF | AUX_OBF) == OBF | AUX_OBF
    assert rig.drain() == [0x08, 5, 3] and rig.edges == [12, 12, 12]


def test_keys_go_before_movement(rig: Rig) -> None:
    rig.command(0x60, 0x47)
    rig.to_mouse(0xF4)
    rig.mouse.move(1, -1)
    rig.keyboard.key(CODES["z"], True)
    assert rig.data() == 0x08
    rig.clock.advance(MS)
    assert not rig.status & AUX_OBF and rig.data() == 0x2C
    assert rig.drain() == [1, 1]


def test_without_a_mouse_its_port_times_out() -> None:
    rig = Rig(with_mouse=False)
    rig.command(0xD4, 0xF2)
    assert rig.status & (OBF | AUX_OBF | TIMEOUT) == OBF | AUX_OBF | TIMEOUT
    assert rig.data() == 0xFE and not rig.status & TIMEOUT


def test_output_port_opens_and_shuts_a20(rig: Rig) -> None:
    port92 = ResetControl(rig.on_reset, rig.on_reset, rig.gate).port_a
    rig.command(0xD1, 0xDD)
    assert rig.a20_seen == [False]
    rig.command(0xD0)
    assert not rig.read() & 2 and not port92.read(0, 1) & 2
    port92.write(0, 1, 0x02)  # fast A20, as firmware does it
    assert rig.a20_seen == [False, True]
    rig.command(0xD0)
    assert rig.read() & 3 == 3
    rig.command(0xDD)
    rig.command(0xDD)
    rig.command(0xDF)
    assert rig.a20_seen == [False, True, False, True]
    port92.write(0, 1, port92.read(0, 1) & ~2)
    assert rig.a20_seen[-1] is False and rig.resets == 0


def test_the_cpu_reset_line(rig: Rig) -> None:
    for harmless in (0xFF, 0xF1, 0xFD):
        rig.command(harmless)
    assert rig.resets == 0
    rig.command(0xFE)
    assert rig.resets == 1
    rig.command(0xD1, 0xFE)
    assert rig.resets == 2


def test_a_command_forgets_the_argument_of_the_one_before(rig: Rig) -> None:
    rig.command(0xD1)
    rig.command(0xAE)
    rig.send(0xEE)  # for the keyboard: not the output port, whose bit 0 would reset
    assert rig.read() == 0xEE and rig.resets == 0


def test_a_password_is_swallowed_and_none_is_installed(rig: Rig) -> None:
    rig.command(0xA5, 0x1E, 0x30, 0x00)
    rig.send(0xEE)
    assert rig.drain() == [0xEE]
    rig.command(0xA4)
    assert rig.read() == 0xF1


def test_controller_ram(rig: Rig) -> None:
    rig.command(0x7F, 0x5A)
    rig.command(0x3F)
    assert rig.read() == 0x5A


def test_status_tells_the_kind_of_the_last_write(rig: Rig) -> None:
    rig.command(0xAE)
    assert rig.status & 0x08
    rig.send(0xEE)
    assert not rig.status & 0x08 and rig.status & 0x10 and not rig.status & 0x02


def test_a_snapshot_in_the_midst_of_a_key(rig: Rig) -> None:
    rig.keyboard.key(CODES["right"], True)
    rig.keyboard.key(CODES["right"], False)
    assert rig.data() == 0xE0
    saved = rig.kbc.save(), rig.keyboard.save(), rig.mouse.save()
    assert 0 < saved[0]["line_ns"] <= MS
    fresh = Rig()
    fresh.kbc.load(saved[0])  # before its devices
    fresh.keyboard.load(saved[1])
    fresh.mouse.load(saved[2])
    assert not fresh.status & OBF
    assert fresh.drain() == [0x4D, 0xE0, 0xCD]
    assert fresh.edges == [1, 1, 1]


def test_nothing_moves_while_paused(rig: Rig) -> None:
    rig.kbc.pause()
    rig.keyboard.key(CODES["k"], True)
    rig.clock.advance(10 * MS)
    assert rig.edges == []
    rig.kbc.resume()
    assert rig.edges == [1] and rig.data() == 0x25


def test_a_guest_that_never_reads_makes_nothing_grow(rig: Rig) -> None:
    for _ in range(1000):
        rig.send(0xF2)
        rig.command(0xD4, 0xE9)
        rig.command(0x20)
        rig.keyboard.key(CODES["pause"], True)
        rig.keyboard.key(CODES["pause"], False)
        rig.mouse.move(100, 100, 1)
        rig.mouse.buttons(1)
        rig.mouse.buttons(0)
    assert rig.keyboard.backlog_bytes <= 33 and rig.mouse.backlog_bytes <= 80
