"""Power management function of the PIIX4: Intel 82371AB (data sheet 290562-001), function 3, 8086:7113.

    PMBASE 0x40 (PMREGMISC 0x80 bit 0 enables)   64 ports: ACPI registers of `acpi_pm`, then chipset's own
    SMBBA 0x90 (SMBHSTCFG 0xd2 bit 0 enables)    16 ports: SMBus host controller with an empty bus
    0xb2, 0xb3                                   APMC and APMS, the ports towards a system management handler

System management mode is switched off: no write to APMC and no event raises an SMI.  DEVACTB (0x58) says from power-on on that
APMC's SMI is enabled, by which SeaBIOS knows that there is nothing to be set up and does not try.  What the handler would do for
the FADT's ACPI_ENABLE and ACPI_DISABLE, switching SCI_EN, is done here by the port itself.
"""

from __future__ import annotations

from typing import Any

from ringfence.bus.bus import Bus, Range
from ringfence.bus.irq import IrqPin
from ringfence.bus.pci import PciFunction, PciState
from ringfence.core.state import Field
from ringfence.core.trace import tracer
from ringfence.devices.acpi_pm import AcpiPm
from ringfence.devices.api import Device
from ringfence.devices.ports import BytePorts

trace = tracer("pci")

APM_PORTS_BASE, APM_PORTS = 0xB2, 2
ACPI_ENABLE, ACPI_DISABLE = 0xF1, 0xF0
PMBASE, DEVACTB, PMREGMISC, SMBBA, SMBHSTCFG = 0x40, 0x58, 0x80, 0x90, 0xD2
PM_PORTS, SMBUS_PORTS = 64, 16
_APMC_EN = 1 << 25
# Offsets from PMBASE (7.2)
_PM1_CNT, _PM_TMR, _GPSTS, _OWN = 0x04, 0x08, 0x0C, 0x10
_GLBSTS, _DEVSTS, _GPIREG = range(0x18, 0x1A), range(0x1C, 0x20), range(0x30, 0x34)
_READ_ONLY = frozenset((*_GLBSTS, *_DEVSTS, *_GPIREG))  # no event ever sets a status bit; they are cleared by writing 1
# Offsets from SMBBA (7.3)
_SMBHSTSTS, _SMBHSTCNT = 0, 2
_DEV_ERR, _STATUS_BITS, _START = 0x04, 0x1E, 0x40


class Piix4PmState(PciState):
    apm = Field(8, count=APM_PORTS, doc="APMC, APMS")
    own = Field(8, count=PM_PORTS - _OWN, doc="registers from PMBASE + 0x10 on")
    smbus = Field(8, count=SMBUS_PORTS, doc="SMBus host registers")


class Piix4Pm(PciFunction, Device):
    """Claims its ports on `ports` where the guest puts them; `apm` is the handler for ports 0xb2 and 0xb3.

    `power` holds the ACPI registers; it is a device of its own.
    """

    state_class = Piix4PmState
    state: Piix4PmState

    def __init__(self, power: AcpiPm, ports: Bus, irq: IrqPin | None = None) -> None:
        super().__init__("power-management", 0x8086, 0x7113, 0x068000, revision_id=3, irq=irq)
        self._power = power
        self._ports = ports
        self._claimed: dict[int, Range] = {}
        self.apm = BytePorts(APM_PORTS, lambda port: int(self.state.apm[port]), self._write_apm)
        self._pm = BytePorts(PM_PORTS, self._read_own, self._write_own)
        self._smbus = BytePorts(SMBUS_PORTS, lambda port: int(self.state.smbus[port]), self._write_smbus)
        self.preset(PMBASE, 4, 1)
        self.preset(SMBBA, 4, 1)
        self.preset(DEVACTB, 4, _APMC_EN)
        for offset, size, mask in ((PMBASE, 4, 0xFFC0), (PMREGMISC, 1, 1), (SMBBA, 4, 0xFFF0), (SMBHSTCFG, 1, 0x0F)):
            self.allow(offset, size, mask)
        for base, control in ((PMBASE, PMREGMISC), (SMBBA, SMBHSTCFG)):
            self.on_config_write(base, 4, self._claim)
            self.on_config_write(control, 1, self._claim)

    # -- decoding

    def _claim(self) -> None:
        """Moves the two blocks of ports to where the registers say; a place that is taken claims nothing."""
        config = self.state.config
        for register, control, mask, handler, count in (
            (PMBASE, PMREGMISC, 0xFFC0, self, PM_PORTS),
            (SMBBA, SMBHSTCFG, 0xFFF0, self._smbus, SMBUS_PORTS),
        ):
            base = int.from_bytes(config[register : register + 2], "little") & mask
            wanted = base if config[control] & 1 and base else None
            old = self._claimed.get(register)
            if old is not None and old.base != wanted:
                self._ports.remove(old)
                del self._claimed[register]
            if wanted is not None and register not in self._claimed:
                try:
                    self._claimed[register] = self._ports.add(wanted, count, handler, f"{self.name} {register:#x}")
                except ValueError as conflict:
                    if trace:
                        trace("%s: %s", self.name, conflict)

    # -- ports from PMBASE on

    def read(self, offset: int, size: int) -> int:
        if offset == _PM_TMR and size == 4:  # polled in a loop by firmware and kernels
            return self._power.timer.read(0, 4)
        return self._pm.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self._pm.write(offset, size, value)

    def _read_own(self, offset: int) -> int:
        power = self._power
        if offset < _PM1_CNT:
            return power.pm1_event.read(offset, 1)
        if offset < _PM_TMR:
            return power.pm1_control.read(offset - _PM1_CNT, 1) if offset < _PM1_CNT + 2 else 0
        if offset < _GPSTS:
            return power.timer.read(offset - _PM_TMR, 1) & 0xFF
        if offset < _OWN:
            return power.gpe0.read(offset - _GPSTS, 1)
        return int(self.state.own[offset - _OWN])

    def _write_own(self, offset: int, value: int) -> None:
        power = self._power
        if offset < _PM1_CNT:
            power.pm1_event.write(offset, 1, value)
        elif offset < _PM_TMR:
            if offset < _PM1_CNT + 2:
                power.pm1_control.write(offset - _PM1_CNT, 1, value)
        elif offset >= _OWN:
            if offset not in _READ_ONLY:
                self.state.own[offset - _OWN] = value
        elif offset >= _GPSTS:
            power.gpe0.write(offset - _GPSTS, 1, value)

    def _write_apm(self, port: int, value: int) -> None:
        self.state.apm[port] = value
        if port == 0 and value in (ACPI_ENABLE, ACPI_DISABLE):
            self._power.set_acpi_mode(value == ACPI_ENABLE)

    def _write_smbus(self, port: int, value: int) -> None:
        """Every transaction ends at once with "nobody answers" (DEV_ERR)."""
        registers = self.state.smbus
        if port == _SMBHSTSTS:
            registers[port] &= ~(value & _STATUS_BITS)
            return
        registers[port] = value & ~_START if port == _SMBHSTCNT else value
        if port == _SMBHSTCNT and value & _START:
            registers[_SMBHSTSTS] |= _DEV_ERR

    # -- life

    def reset(self) -> None:
        super().reset()
        self._claim()

    def load(self, saved: dict[str, Any]) -> None:
        super().load(saved)
        self._claim()
