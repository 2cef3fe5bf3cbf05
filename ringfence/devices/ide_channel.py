"""One IDE channel: two drives on one cable, an interrupt, and a bus master where the controller has one.

ATA/ATAPI-6 (T13/1410D revision 3b), clause 7 (registers) and 9 (resets, diagnostics, a drive alone on its cable)::

    command block  8 ports   0 data, 1 error/features, 2-5 sector count and LBA, 6 device, 7 status/command
    control block  1 port    alternate status/device control

On an ISA card this is the whole controller: the AT's fixed disk adapter decodes just these ports.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ringfence.bus.irq import IrqPin
from ringfence.core.errors import SnapshotError
from ringfence.core.state import Field, State
from ringfence.devices.api import Device
from ringfence.devices.ide_busmaster import BusMaster
from ringfence.devices.ide_drive import IdeDrive
from ringfence.devices.ide_registers import (
    BSY,
    COMMAND,
    CONTROL_BLOCK_PORTS,
    DATA,
    DEVICE,
    DEVICE_DEV,
    DEVICE_OBSOLETE,
    DRQ,
    ERROR,
    HOB,
    NIEN,
    SRST,
    STATUS,
)
from ringfence.devices.ports import BytePorts

EXECUTE_DEVICE_DIAGNOSTIC = 0x90
# Command block, control block and ISA interrupt of the two channels that every PC has
PRIMARY, SECONDARY = (0x1F0, 0x3F6, 14), (0x170, 0x376, 15)


class ChannelState(State):
    selected = Field(1, doc="drive that the host talks to")
    control = Field(8, doc="device control as last written")


class IdeChannel(Device):
    """A handler for the command block; `control` is the one for the control block."""

    state: ChannelState

    def __init__(
        self,
        irq: IrqPin,
        drives: Sequence[IdeDrive | None],
        bus_master: BusMaster | None = None,
        name: str = "ide",
    ) -> None:
        """`drives` are master and slave, at most."""
        if len(drives) > 2:
            raise ValueError(f"{name}: {len(drives)} drives; a channel has room for two")
        self.name = name
        self.state = ChannelState()
        self.drives: list[IdeDrive | None] = [*drives, None, None][:2]
        self.bus_master = bus_master
        self.decoded = True  # what the controller's own registers say; without it the ports are nobody's
        self._irq = irq
        self._present = [drive for drive in self.drives if drive is not None]
        self._current = self.drives[0]
        self.control = BytePorts(CONTROL_BLOCK_PORTS, self._read_control, self._write_control)
        for drive in self._present:
            drive.connect(self)
        if bus_master is not None:
            bus_master.on_start, bus_master.on_stop = self._dma_started, self._dma_stopped

    # -- interrupt and DMA ----------------------------------------------------------------------------------------

    def _level(self) -> bool:
        """INTRQ: only the selected drive drives it (clause 7, device control: nIEN)."""
        drive = self._current
        return drive is not None and bool(drive.state.interrupt) and not self.state.control & NIEN

    def interrupt_changed(self) -> None:
        level = self._level()
        if level and not self._irq.level and self.bus_master is not None:
            self.bus_master.interrupt()
        self._irq.set(level)

    def _select(self, number: int) -> None:
        self.state.selected = number
        self._current = self.drives[number]
        self.interrupt_changed()

    def _dma_started(self) -> None:
        for drive in self._present:
            drive.dma_started()

    def _dma_stopped(self) -> None:
        for drive in self._present:
            drive.dma_stopped()

    # -- command block --------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        if not self.decoded:
            return (1 << 8 * size) - 1
        if offset == DATA:
            drive = self._current
            return drive.read_data(size) if drive is not None else 0
        value = 0
        for k in range(size):
            value |= self._read_register(offset + k) << 8 * k
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        if not self.decoded:
            return
        if offset == DATA:
            if self._current is not None:
                self._current.write_data(size, value)
            return
        for k in range(size):
            self._write_register(offset + k, value >> 8 * k & 0xFF)

    def read_many(self, offset: int, size: int, count: int) -> bytes:
        """See `ringfence.bus.bus.BulkHandler`; ends with each block of data."""
        if offset == DATA and self.decoded and self._current is not None:
            return self._current.read_many(size, count)
        return self.read(offset, size).to_bytes(size, "little")

    def write_many(self, offset: int, size: int, data: bytes | memoryview) -> int:
        if offset == DATA and self.decoded and self._current is not None:
            return self._current.write_many(size, data)
        self.write(offset, size, int.from_bytes(data[:size], "little"))
        return 1

    def _read_register(self, number: int) -> int:
        drive = self._current
        if drive is None:
            # Clause 9, "device 0 only": the master answers for a slave that is not there, with a status of 0; nobody does for it.
            drive = self.drives[0]
            if drive is None or number in (ERROR, STATUS) or number > STATUS:
                return 0
            value = int(drive.state.registers[number])
            return value | DEVICE_DEV if number == DEVICE else value
        s = drive.state
        if number == STATUS:
            return drive.read_status()
        if number == ERROR:
            return int(s.error)
        if number > STATUS or number == DATA:
            return 0xFF
        return int((s.previous if self.state.control & HOB and number != DEVICE else s.registers)[number])

    def _write_register(self, number: int, value: int) -> None:
        self.state.control &= ~HOB
        if number >= COMMAND:
            if number == COMMAND and self._current is not None:
                self._command(self._current, value)
            return
        if self._current is not None and self._current.state.status & (BSY | DRQ):
            return  # not while a command is under way
        if number == DEVICE:
            value |= DEVICE_OBSOLETE
        for drive in self._present:
            drive.write_register(number, value)
        if number == DEVICE:
            self._select(1 if value & DEVICE_DEV else 0)

    def _command(self, drive: IdeDrive, command: int) -> None:
        if command == EXECUTE_DEVICE_DIAGNOSTIC and not drive.state.status & (BSY | DRQ):
            # EXECUTE DEVICE DIAGNOSTIC is for both drives, whichever is selected; the master reports
            self._reset_drives()
            if self._current is not None:
                self._current.diagnosed()
        else:
            drive.write_command(command)

    # -- control block --------------------------------------------------------------------------------------------

    def _read_control(self, port: int) -> int:
        if not self.decoded:
            return 0xFF
        return int(self._current.state.status) if self._current is not None else 0

    def _write_control(self, port: int, value: int) -> None:
        if not self.decoded:
            return
        s = self.state
        changed = s.control ^ value
        s.control = value & (HOB | SRST | NIEN)
        if changed & SRST:
            self._reset_drives()
            if value & SRST:
                for drive in self._present:
                    drive.state.status = BSY  # as long as the host holds the bit
        self.interrupt_changed()

    def _reset_drives(self) -> None:
        for drive in self._present:
            drive.soft_reset()
            drive.state.registers[DEVICE] = 0
        self._select(0)

    # -- life -----------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        for drive in self._present:
            drive.reset()
        self.state.reset()
        if self.bus_master is not None:
            self.bus_master.state.reset()
        self._select(0)

    def save(self) -> dict[str, Any]:
        for drive in self._present:
            drive.settle()
        drives = [None if drive is None else drive.save() for drive in self.drives]
        saved: dict[str, Any] = {**self.state.save(), "drives": drives}
        if self.bus_master is not None:
            saved["bus_master"] = self.bus_master.state.save()
        for drive in self._present:
            drive.go_on()
        return saved

    def load(self, saved: dict[str, Any]) -> None:
        saved = dict(saved)
        drives, bus_master = saved.pop("drives", None), saved.pop("bus_master", None)
        if not isinstance(drives, list) or [d is None for d in drives] != [d is None for d in self.drives]:
            raise SnapshotError(f"{self.name}: other drives than there are here")
        if (bus_master is None) != (self.bus_master is None):
            raise SnapshotError(f"{self.name}: a bus master is missing or left over")
        for drive in self._present:
            drive.settle()
        try:
            self.state.load(saved)
            if self.bus_master is not None:
                self.bus_master.state.load(bus_master)
            for drive, fields in zip(self._present, filter(None, drives), strict=True):
                drive.load(fields)
        finally:
            self._current = self.drives[self.state.selected]
            self._irq.restore(self._level())
            for drive in self._present:
                drive.go_on()

    def pause(self) -> None:
        for drive in self._present:
            drive.pause()

    def resume(self) -> None:
        for drive in self._present:
            drive.resume()
