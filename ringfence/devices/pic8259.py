"""The PC's pair of 8259A interrupt controllers (Intel 8259A data sheet, order 231468-003) with the ELCR of the PIIX
(82371AB data sheet, section 3.1.8).

    inputs 0-7 --> master --output--> CPU (LINT0, ExtINT)        ports 0x20, 0x21; 0x4d0
    inputs 8-15 -> slave  --input 2 of the master                ports 0xa0, 0xa1; 0x4d1

Every field of the state is a pair: index 0 is the master, 1 the slave.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ringfence.core.state import Field, State
from ringfence.devices.api import Device
from ringfence.devices.ports import BytePorts

MASTER_BASE, SLAVE_BASE, ELCR_BASE = 0x20, 0xA0, 0x4D0
_MASTER, _SLAVE = 0, 1
_CASCADE = 2
_ELCR_MASK = (0xF8, 0xDE)  # IRQ 0, 1, 2, 8 and 13 are always edge-triggered


class PicState(State):
    irr = Field(8, count=2, doc="interrupt request register")
    isr = Field(8, count=2, doc="in-service register")
    imr = Field(8, count=2, reset=0xFF, doc="interrupt mask register (OCW1); all masked, as firmware leaves it")
    lines = Field(8, count=2, doc="levels of the inputs")
    elcr = Field(8, count=2, doc="edge/level control: 1 is level-triggered")
    vector = Field(8, count=2, doc="vector of input 0 (ICW2)")
    lowest = Field(3, count=2, reset=7, doc="input of lowest priority")
    icw = Field(3, count=2, doc="initialisation word awaited next (2-4), 0 when operating")
    icw4_needed = Field(1, count=2, doc="ICW1 bit 0")
    single = Field(1, count=2, doc="ICW1 bit 1: no cascade, no ICW3")
    level_mode = Field(1, count=2, doc="ICW1 bit 3: all inputs are level-triggered")
    auto_eoi = Field(1, count=2, doc="ICW4 bit 1")
    rotate_on_auto_eoi = Field(1, count=2, doc="OCW2: rotate in automatic EOI mode")
    special_nested = Field(1, count=2, doc="ICW4 bit 4: special fully nested mode")
    special_mask = Field(1, count=2, doc="OCW3: special mask mode")
    read_isr = Field(1, count=2, doc="OCW3: the command port reads ISR instead of IRR")
    poll = Field(1, count=2, doc="OCW3: the next read acknowledges")


class PicPair(Device):
    """`output(level)` is the INT line towards the CPU.  Bus handlers: `master`, `slave`, `elcr` (two ports each)."""

    name = "pic"

    def __init__(self, output: Callable[[bool], None]) -> None:
        self.state: PicState = PicState()
        self._output = output
        self._output_level = False
        self.master = BytePorts(2, lambda port: self._read(_MASTER, port), lambda port, v: self._write(_MASTER, port, v))
        self.slave = BytePorts(2, lambda port: self._read(_SLAVE, port), lambda port, v: self._write(_SLAVE, port, v))
        self.elcr = BytePorts(2, lambda chip: int(self.state.elcr[chip]), self._write_elcr)

    def reset(self) -> None:
        """Input levels belong to whoever drives them; everything else starts anew."""
        lines = self.state.lines
        self.state.reset()
        self.state.lines = lines
        self._update()

    def load(self, saved: dict[str, Any]) -> None:
        self.state.load(saved)
        self._update()

    def input(self, number: int) -> Callable[[bool], None]:
        """The listener for IRQ line `number` (0-15; 2 is the cascade and must stay unconnected)."""
        chip, bit = number >> 3, 1 << (number & 7)
        return lambda level: self._set_line(chip, bit, level)

    def pending(self) -> bool:
        return self._highest(_MASTER) is not None

    def in_service(self, number: int) -> bool:
        """Whether IRQ `number` was acknowledged and its handler has not given the EOI yet."""
        return bool(self.state.isr[number >> 3] >> (number & 7) & 1)

    def acknowledge(self) -> int:
        """The INTA cycle: returns the vector.  With nothing left to acknowledge it is that of IRQ 7 (or 15)."""
        vector = self._acknowledge(_MASTER)
        self._update()
        return vector

    def _set_line(self, chip: int, bit: int, level: bool) -> None:
        s = self.state
        old = s.lines[chip]
        if level:
            s.lines[chip] = old | bit
            if not old & bit and not self._level_inputs(chip) & bit:
                s.irr[chip] |= bit  # latched until acknowledged, as drivers that pulse their line expect
        else:
            s.lines[chip] = old & ~bit
        self._update()

    def _level_inputs(self, chip: int) -> int:
        return 0xFF if self.state.level_mode[chip] else int(self.state.elcr[chip])

    def _requests(self, chip: int) -> int:
        level = self._level_inputs(chip)
        requests = self.state.irr[chip] & ~level | self.state.lines[chip] & level
        if chip == _MASTER:
            requests &= ~(1 << _CASCADE)
            if not self.state.single[_MASTER] and self._highest(_SLAVE) is not None:
                requests |= 1 << _CASCADE
        return int(requests)

    def _highest(self, chip: int) -> int | None:
        """The input that would be acknowledged now, after mask, in-service inputs and rotation."""
        s = self.state
        if s.icw[chip]:
            return None
        wanted = self._requests(chip) & ~s.imr[chip]
        if not wanted:
            return None
        blocking = s.isr[chip]
        if s.special_mask[chip]:
            blocking &= ~s.imr[chip]
        if chip == _MASTER and s.special_nested[_MASTER]:
            blocking &= ~(1 << _CASCADE)
        for k in range(1, 9):
            number = int(s.lowest[chip]) + k & 7
            if blocking >> number & 1:
                return None
            if wanted >> number & 1:
                return number
        return None

    def _acknowledge(self, chip: int) -> int:
        s = self.state
        number = self._highest(chip)
        if number is None:
            return int(s.vector[chip]) | 7  # spurious: ISR stays as it is
        bit = 1 << number
        s.irr[chip] &= ~bit
        if not s.auto_eoi[chip]:
            s.isr[chip] |= bit
        elif s.rotate_on_auto_eoi[chip]:
            s.lowest[chip] = number
        if chip == _MASTER and number == _CASCADE and not s.single[_MASTER]:
            return self._acknowledge(_SLAVE)
        return int(s.vector[chip]) | number

    def _update(self) -> None:
        level = self._highest(_MASTER) is not None
        if level != self._output_level:
            self._output_level = level
            self._output(level)

    def _write_elcr(self, chip: int, value: int) -> None:
        self.state.elcr[chip] = value & _ELCR_MASK[chip]
        self._update()

    def _read(self, chip: int, port: int) -> int:
        s = self.state
        if s.poll[chip]:
            s.poll[chip] = 0
            if self._highest(chip) is None:
                return 0
            number = self._acknowledge_polled(chip)
            self._update()
            return 0x80 | number
        if port == 1:
            return int(s.imr[chip])
        return int(s.isr[chip]) if s.read_isr[chip] else self._requests(chip)

    def _acknowledge_polled(self, chip: int) -> int:
        """Data sheet, "poll command": the read acts as INTA for this chip alone."""
        s = self.state
        number = self._highest(chip)
        assert number is not None
        s.irr[chip] &= ~(1 << number)
        if not s.auto_eoi[chip]:
            s.isr[chip] |= 1 << number
        elif s.rotate_on_auto_eoi[chip]:
            s.lowest[chip] = number
        return number

    def _write(self, chip: int, port: int, value: int) -> None:
        if port == 0:
            if value & 0x10:
                self._write_icw1(chip, value)
            elif value & 0x08:
                self._write_ocw3(chip, value)
            else:
                self._write_ocw2(chip, value)
        else:
            self._write_data(chip, value)
        self._update()

    def _write_icw1(self, chip: int, value: int) -> None:
        s = self.state
        s.irr[chip] = s.isr[chip] = s.imr[chip] = 0
        s.lowest[chip] = 7
        s.special_mask[chip] = s.read_isr[chip] = s.poll[chip] = 0
        s.auto_eoi[chip] = s.rotate_on_auto_eoi[chip] = s.special_nested[chip] = 0
        s.icw4_needed[chip] = value & 1
        s.single[chip] = value >> 1 & 1
        s.level_mode[chip] = value >> 3 & 1
        s.icw[chip] = 2

    def _write_data(self, chip: int, value: int) -> None:
        s = self.state
        stage = s.icw[chip]
        if stage == 0:
            s.imr[chip] = value
        elif stage == 2:
            s.vector[chip] = value & 0xF8
            s.icw[chip] = 3 if not s.single[chip] else 4 if s.icw4_needed[chip] else 0
        elif stage == 3:
            s.icw[chip] = 4 if s.icw4_needed[chip] else 0  # the cascade is wired: ICW3 changes nothing
        else:
            s.auto_eoi[chip] = value >> 1 & 1
            s.special_nested[chip] = value >> 4 & 1
            s.icw[chip] = 0

    def _write_ocw2(self, chip: int, value: int) -> None:
        s = self.state
        command, number = value >> 5, value & 7
        if command in (0, 4):  # rotate in automatic EOI mode: clear, set
            s.rotate_on_auto_eoi[chip] = command >> 2
        elif command in (1, 5):  # non-specific EOI, and with rotation
            for k in range(1, 9):
                candidate = s.lowest[chip] + k & 7
                # In special mask mode a masked input's ISR bit is not touched by a non-specific EOI.
                if s.isr[chip] >> candidate & 1 and not (s.special_mask[chip] and s.imr[chip] >> candidate & 1):
                    s.isr[chip] &= ~(1 << candidate)
                    if command == 5:
                        s.lowest[chip] = candidate
                    break
        elif command in (3, 7):  # specific EOI, and with rotation
            s.isr[chip] &= ~(1 << number)
            if command == 7:
                s.lowest[chip] = number
        elif command == 6:
            s.lowest[chip] = number

    def _write_ocw3(self, chip: int, value: int) -> None:
        s = self.state
        if value & 4:
            s.poll[chip] = 1
        if value & 2:
            s.read_isr[chip] = value & 1
        if value & 0x40:
            s.special_mask[chip] = value >> 5 & 1
