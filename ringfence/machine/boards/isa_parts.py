"""The parts that a PC has beside its timers, serial line and interrupt controllers: keyboard, mouse, floppies, printer port.

A board behind firmware has them all; one that starts a kernel has those that it was given something for, so that Linux spends no
time on looking for drives and keys that nobody uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringfence.core.late import LateModule
from ringfence.devices import reset
from ringfence.devices.a20 import A20Gate
from ringfence.devices.parallel import LPT1_BASE, LPT1_IRQ, PARALLEL_PORTS, ParallelPort
from ringfence.devices.ps2_keyboard import Ps2Keyboard
from ringfence.devices.ps2_mouse import Ps2Mouse

if TYPE_CHECKING:
    from ringfence.devices import dma8237, floppy, i8042, testdev
    from ringfence.machine.boards.base import Board
else:  # behind firmware, or where they are asked for
    dma8237 = LateModule("ringfence.devices.dma8237")
    floppy = LateModule("ringfence.devices.floppy")
    i8042 = LateModule("ringfence.devices.i8042")
    testdev = LateModule("ringfence.devices.testdev")

CASCADE_IRQ = 2
CMOS_FLOPPY_KINDS = 0x10


class IsaParts:
    """Puts the parts onto `board`; what they are can be asked afterwards."""

    def __init__(self, board: Board) -> None:
        host = board.host
        whole = host.firmware is not None
        self._board = board
        self.a20: A20Gate | None = None
        self.floppy: floppy.Floppy | None = None
        self.has_keyboard = board.has_old_parts and (whole or host.display)
        self.has_floppy = board.has_old_parts and (whole or any(drive.kind == "floppy" for drive in host.drives))
        if self.has_keyboard:
            self.a20 = board.add(A20Gate(host.memory.set_a20))
        board.reset_control = board.add(reset.ResetControl(host.reset, host.cpu_reset, self.a20))
        board.map_ports(reset.SYSTEM_CONTROL_PORT, 1, board.reset_control.port_a, "system-control-a")
        if self.a20 is not None:
            self._add_keyboard(self.a20)
        else:
            board.map_ports(reset.KEYBOARD_DATA_PORT, 1, board.reset_control.keyboard_data, "keyboard-data")
            board.map_ports(reset.KEYBOARD_COMMAND_PORT, 1, board.reset_control.keyboard_command, "keyboard-command")
        if self.has_floppy:
            self._add_floppy()
        self.has_parallel = board.has_old_parts and (whole or host.printer is not None)
        if self.has_parallel:
            part = board.add(ParallelPort(board.pin(LPT1_IRQ), host.printer, host.clock))
            board.map_ports(LPT1_BASE, PARALLEL_PORTS, part.ports, "lpt1")
        if "testdev" in host.extras:
            self._add_test_device()

    def _add_test_device(self) -> None:
        board = self._board
        part = board.add(testdev.TestDevice([None if number == CASCADE_IRQ else board.pin(number) for number in range(testdev.IRQ_LINES)]))
        for base in (testdev.REGISTER_PORT, testdev.BYTE_REGISTER_PORT):
            board.map_ports(base, testdev.REGISTER_PORTS, part.register, "testdev")
        board.map_ports(testdev.FLUSH_PORT, testdev.REGISTER_PORTS, part.flush, "testdev-flush")
        board.map_ports(testdev.IRQ_PORT, testdev.IRQ_LINES, part.irqs, "testdev-irqs")
        board.map_mmio(testdev.IOMEM_BASE, testdev.IOMEM_BYTES, part.iomem, "testdev-memory")

    def _add_keyboard(self, a20: A20Gate) -> None:
        board, host = self._board, self._board.host
        board.keyboard, board.mouse = board.add(Ps2Keyboard()), board.add(Ps2Mouse())
        irqs = board.pin(i8042.KEYBOARD_IRQ), board.pin(i8042.MOUSE_IRQ)

        def in_service() -> bool:
            return board.pic.in_service(i8042.KEYBOARD_IRQ) or board.pic.in_service(i8042.MOUSE_IRQ)

        self.controller = board.add(i8042.I8042(*irqs, host.clock, board.keyboard, board.mouse, a20, host.cpu_reset, in_service))
        board.map_ports(i8042.DATA_PORT, 1, self.controller.data, "keyboard-data")
        board.map_ports(i8042.COMMAND_PORT, 1, self.controller.command, "keyboard-command")

    def _add_floppy(self) -> None:
        board, host = self._board, self._board.host
        dma = board.add(dma8237.Dma8237(host.memory))
        board.map_ports(dma8237.LOW_BASE, dma8237.LOW_PORTS, dma.low, "dma-low")
        board.map_ports(dma8237.HIGH_BASE, dma8237.HIGH_PORTS, dma.high, "dma-high")
        board.map_ports(dma8237.PAGE_BASE, dma8237.PAGE_PORTS, dma.pages, "dma-pages")
        media = [drive.block for drive in host.drives if drive.kind == "floppy"]
        self.floppy = board.add(floppy.Floppy(board.pin(floppy.FLOPPY_IRQ), host.clock, dma.channel(floppy.FLOPPY_DMA), media))
        board.map_ports(floppy.FLOPPY_BASE, floppy.FLOPPY_PORTS, self.floppy.ports, "floppy")
        board.map_ports(floppy.FLOPPY_DIR_PORT, 1, self.floppy.port7, "floppy-dir")

    def start_as_firmware(self) -> None:
        """What firmware would leave behind, where a kernel starts without."""
        if self._board.host.firmware is not None:
            return
        if self.has_keyboard:
            self.controller.start_as_firmware()
        if self.floppy is not None:
            first, second = self.floppy.kinds
            self._board.rtc.set_nvram(CMOS_FLOPPY_KINDS, first.value << 4 | second.value)

    def open_a20(self) -> None:
        if self.a20 is not None:
            self.a20.set(True)
