"""A disk on an IDE channel: its commands.

ATA/ATAPI-6 (T13/1410D revision 3b), clause 8; geometry commands and the old opcodes of power management as in ATA-1 to
ATA-3.  Sectors are 512 bytes.
"""

from __future__ import annotations

from collections.abc import Callable

from ringfence.backends.api import Block
from ringfence.devices.api import Executor
from ringfence.devices.ata_geometry import Geometry
from ringfence.devices.ata_identify import identify_device
from ringfence.devices.ata_transfer import DMA_READ, DMA_WRITE, FILL_BUFFER, MAX_MULTIPLE, AtaTransfers
from ringfence.devices.ide_registers import (
    ABRT,
    DEVICE,
    DEVICE_DEV,
    DEVICE_LBA,
    FEATURES,
    IDNF,
    LBA_HIGH,
    LBA_MID,
    SECTOR_BYTES,
    SECTOR_COUNT,
)

_SMART_SIGNATURE = (0x4F, 0xC2)
_SMART_ENABLED, _SMART_DISABLED, _SMART_STATUS, _SMART_AUTOSAVE, _SMART_DATA, _SMART_THRESHOLDS = 0xD8, 0xD9, 0xDA, 0xD2, 0xD0, 0xD1


class AtaDrive(AtaTransfers):
    """A disk over `backend`.  `dma` says whether its channel has a bus master; `geometry` is what IDENTIFY tells."""

    def __init__(
        self,
        backend: Block,
        executor: Executor,
        *,
        geometry: Geometry | None = None,
        dma: bool = True,
        model: str = "Ringfence Disk",
        serial: str = "RF00000001",
        name: str = "ata-disk",
    ) -> None:
        self._model, self._serial = model, serial
        self._commands = self._command_table()
        super().__init__(backend, executor, geometry, dma, name)

    def execute(self, command: int) -> None:
        handler = self._commands.get(command)
        if handler is None:
            self._abort()
        else:
            handler()

    def _command_table(self) -> dict[int, Callable[[], None]]:
        read, write, dma = self._read_sectors, self._write_sectors, self._transfer_dma
        table: dict[int, Callable[[], None]] = {
            **dict.fromkeys(range(0x10, 0x20), self._complete),  # RECALIBRATE
            **dict.fromkeys((0x20, 0x21), lambda: read(False, 1)),
            0x24: lambda: read(True, 1),
            0x25: lambda: dma(DMA_READ, True),
            0x27: lambda: self._read_native_max(True),
            0x29: lambda: read(True, self.state.multiple),
            **dict.fromkeys((0x30, 0x31, 0x3C), lambda: write(False, 1)),  # with and without retries, WRITE VERIFY
            0x34: lambda: write(True, 1),
            0x35: lambda: dma(DMA_WRITE, True),
            0x39: lambda: write(True, self.state.multiple),
            0x3D: lambda: dma(DMA_WRITE, True, through=True),  # WRITE DMA FUA EXT
            **dict.fromkeys((0x40, 0x41), lambda: self._verify(False)),
            0x42: lambda: self._verify(True),
            **dict.fromkeys(range(0x70, 0x80), self._seek),
            0x91: self._initialize_parameters,
            0xB0: self._smart,
            0xC4: lambda: read(False, self.state.multiple),
            0xC5: lambda: write(False, self.state.multiple),
            0xC6: self._set_multiple,
            **dict.fromkeys((0xC8, 0xC9), lambda: dma(DMA_READ, False)),
            **dict.fromkeys((0xCA, 0xCB), lambda: dma(DMA_WRITE, False)),
            0xCE: lambda: write(True, self.state.multiple, through=True),  # WRITE MULTIPLE FUA EXT
            0xE4: lambda: self._send(bytearray(self._buffer)),
            **dict.fromkeys((0xE7, 0xEA), self._flush),
            0xE8: self._write_buffer,
            0xEC: self._identify,
            0xEF: self._set_features,
            0xF8: lambda: self._read_native_max(False),
        }
        # STANDBY and IDLE (IMMEDIATE), SLEEP: the disk is always spinning.  Old opcodes and new ones.
        table |= dict.fromkeys((0x94, 0x95, 0x96, 0x97, 0x99, 0xE0, 0xE1, 0xE2, 0xE3, 0xE6), self._complete)
        table |= dict.fromkeys((0x98, 0xE5), self._check_power_mode)
        return table

    # -- commands without sectors --------------------------------------------------------------------------------------

    def _flush(self) -> None:
        if self.backend.readonly:
            self._complete()
        else:
            self._perform(self.backend.flush, lambda error: self._fail(ABRT) if error is not None else self._end(), False)

    def _write_buffer(self) -> None:
        self.state.operation = FILL_BUFFER
        self._receive(SECTOR_BYTES, interrupt=False)

    def _seek(self) -> None:
        address = self._address(False)
        if address is None or address.lba >= self.total_sectors:
            self._abort(IDNF)
        else:
            self._complete()

    def _read_native_max(self, extended: bool) -> None:
        s = self.state
        if not extended and not s.registers[DEVICE] & DEVICE_LBA:
            self._abort()
            return
        s.extended, s.by_lba, s.left = int(extended), 1, s.registers[SECTOR_COUNT]
        last = max(self.total_sectors - 1, 0)
        s.lba = last if extended else min(last, 0x0FFF_FFFF)
        self._show_address()
        s.left = 0
        self._complete()

    def _initialize_parameters(self) -> None:
        """As in ATA-3: the geometry that CHS addresses are meant in from now on."""
        s = self.state
        heads, sectors = (s.registers[DEVICE] & 15) + 1, s.registers[SECTOR_COUNT]
        if not sectors:
            self._abort()
            return
        s.heads, s.sectors = heads, sectors
        s.cylinders = min(self.total_sectors // (heads * sectors), 0xFFFF)
        self._complete()

    def _set_multiple(self) -> None:
        count = self.state.registers[SECTOR_COUNT]
        if count > MAX_MULTIPLE or count & count - 1:
            self._abort()
        else:
            self.state.multiple = count
            self._complete()

    def _check_power_mode(self) -> None:
        self.state.registers[SECTOR_COUNT] = 0xFF  # active or idle
        self._complete()

    def _identify(self) -> None:
        s = self.state
        block = identify_device(
            sectors=self.total_sectors,
            native=self.geometry,
            current=Geometry(s.cylinders, s.heads, s.sectors),
            max_multiple=MAX_MULTIPLE,
            multiple=s.multiple,
            dma=self._dma,
            mdma=s.mdma,
            udma=s.udma,
            write_cache=bool(s.write_cache),
            smart=bool(s.smart),
            is_slave=bool(s.registers[DEVICE] & DEVICE_DEV),
            model=self._model,
            serial=self._serial,
        )
        self._send(bytearray(block))

    def _set_features(self) -> None:
        """Subcommands: transfer mode, write cache; the others have nothing to do."""
        s = self.state
        feature = s.registers[FEATURES]
        if feature == 0x03:
            if not self._select_mode(s.registers[SECTOR_COUNT]):
                self._abort()
                return
        elif feature in (0x02, 0x82):
            s.write_cache = int(feature == 0x02)
            if feature == 0x82:
                self._flush()
                return
        elif feature not in (0x55, 0xAA, 0x66, 0xCC):  # look-ahead, defaults kept over a soft reset: nothing to be done
            self._abort()
            return
        self._complete()

    def _smart(self) -> None:
        """A disk in good health, without attributes."""
        s = self.state
        r = s.registers
        function = r[FEATURES]
        if (r[LBA_MID], r[LBA_HIGH]) != _SMART_SIGNATURE or (not s.smart and function != _SMART_ENABLED):
            self._abort()
        elif function in (_SMART_ENABLED, _SMART_DISABLED):
            s.smart = int(function == _SMART_ENABLED)
            self._complete()
        elif function in (_SMART_STATUS, _SMART_AUTOSAVE):
            self._complete()  # the signature stays as it is: no threshold was exceeded
        elif function in (_SMART_DATA, _SMART_THRESHOLDS):
            data = bytearray(SECTOR_BYTES)
            data[0] = 1  # revision
            data[511] = -sum(data) & 0xFF
            self._send(data)
        else:
            self._abort()
