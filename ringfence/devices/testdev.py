"""A device for the authors of kernels and of tests: the layout of QEMU's `pc-testdev` (hw/misc/pc-testdev.c).

    ports 0xe0-0xe3      a register that keeps what is written, byte by byte or wider
    ports 0xe4-0xe7      write a physical address: the host would unmap that page and map it again
    ports 0xe8-0xeb      the register of 0xe0 once more, reached a byte at a time
    ports 0x2000-0x2017  write 0 or another value: the level of interrupt line 0-23
    0xff00_0000          64 KiB of memory whose every access leaves the CPU

Its ports are used by kvm-unit-tests.  Pages are never unmapped from the host here, so the second range only takes writes.
"""

from __future__ import annotations

from collections.abc import Sequence

from ringfence.bus.irq import IrqPin
from ringfence.core.state import Field, State
from ringfence.devices.api import Device
from ringfence.devices.ports import BytePorts

REGISTER_PORT, FLUSH_PORT, BYTE_REGISTER_PORT, IRQ_PORT = 0xE0, 0xE4, 0xE8, 0x2000
REGISTER_PORTS = 4
IRQ_LINES = 24
IOMEM_BASE, IOMEM_BYTES = 0xFF00_0000, 0x1_0000


class TestDeviceState(State):
    register = Field(8, count=REGISTER_PORTS, doc="what was written at 0xe0, or 0xe8")
    levels = Field(1, count=IRQ_LINES, doc="levels of the interrupt lines")
    iomem = Field(8, count=IOMEM_BYTES, doc="the memory at 0xff000000")


class _IoMemory:
    """Bytes that are registers."""

    def __init__(self, state: TestDeviceState) -> None:
        self._state = state

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self._state.iomem[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        size = min(size, IOMEM_BYTES - offset)
        self._state.iomem[offset : offset + size] = list(value.to_bytes(8, "little")[:size])


class TestDevice(Device):
    """Bus handlers: `register` (4 ports, mapped twice), `flush` (4 ports), `irqs` (24 ports), `iomem` (64 KiB).

    `pins` are ends of the interrupt lines 0-23 in order; None where the board lets nobody touch a line.
    """

    __test__ = False  # pytest collects classes of this name
    name = "testdev"

    def __init__(self, pins: Sequence[IrqPin | None]) -> None:
        self.state: TestDeviceState = TestDeviceState()
        self._pins = list(pins)
        self.register = BytePorts(REGISTER_PORTS, lambda k: int(self.state.register[k]), self._write_register)
        self.flush = BytePorts(REGISTER_PORTS, lambda _: 0, lambda _, value: None)
        self.irqs = BytePorts(IRQ_LINES, lambda _: 0, self._write_irq)
        self.iomem = _IoMemory(self.state)

    def reset(self) -> None:
        self.state.reset()
        for pin in self._pins:
            if pin is not None:
                pin.set(False)

    def load(self, saved: dict[str, object]) -> None:
        self.state.load(saved)
        for pin, level in zip(self._pins, self.state.levels, strict=False):
            if pin is not None:
                pin.restore(bool(level))

    def _write_register(self, k: int, value: int) -> None:
        self.state.register[k] = value

    def _write_irq(self, line: int, value: int) -> None:
        pin = self._pins[line] if line < len(self._pins) else None
        if pin is not None:
            self.state.levels[line] = int(value != 0)
            pin.set(value != 0)
