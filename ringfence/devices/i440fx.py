"""Host bridge with shadow RAM: Intel 82441FX of the 440FX chipset (data sheet 290549-001), as far as firmware and software see it.

    0x59-0x5f  PAM0-PAM6  13 segments of 0xc0000-0xfffff: reads from RAM or ROM, writes to RAM or nowhere (3.2.18)
    0x72       SMRAM      RAM or video memory at 0xa0000-0xbffff (3.2.22)

              reads     writes
    RE WE     RAM       RAM         no overlay: the guest's RAM itself
    RE        RAM       nowhere     the RAM, not writable
       WE     ROM       RAM         the ROM, not writable; writes come here and are stored into the RAM behind
    neither   ROM       nowhere     the ROM, not writable, or a hole where there is none

There is no system management mode: nothing generates an SMI (see `piix4_pm`), so SMRAM's only effect is D_OPEN, which shows the
RAM behind the video memory's window to everyone until D_CLS or D_LCK ends that.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ringfence.bus.bus import Bus
from ringfence.bus.pci import PciFunction, PciState
from ringfence.core.units import KIB
from ringfence.devices.api import Device
from ringfence.memory.guest_memory import GuestMemory, Overlay, Region

PAM0, SMRAM = 0x59, 0x72
PAM_REGISTERS = 7
READ_ENABLE, WRITE_ENABLE = 1, 2
SHADOW_BASE, SHADOW_END = 0xC0000, 0x100000
VIDEO_BASE, VIDEO_BYTES = 0xA0000, 0x20000
ISA_ROM_BYTES = 128 * KIB
"""Of the system ROM, this much is seen below 1 MiB."""
_SEGMENT_BYTES = 16 * KIB
_SYSTEM_BIOS = 0xF0000
_D_OPEN, _D_CLS, _D_LCK, _G_SMRAME = 0x40, 0x20, 0x10, 0x08
_SMRAM_WRITABLE = _D_OPEN | _D_CLS | _D_LCK | _G_SMRAME
_C_BASE_SEG = 0b010
# Firmware and old kernels tell a virtual machine's chipset from a real one by these.
_SUBSYSTEM_VENDOR, _SUBSYSTEM = 0x1AF4, 0x1100


class _Layer(NamedTuple):
    """The arguments of an overlay; without a region it is a hole."""

    base: int
    size_bytes: int
    region: Region | None = None
    offset: int = 0
    writable: bool = False


class I440Fx(PciFunction, Device):
    """The host bridge at 00:00.0; also the bus handler for what no overlay answers in 0xc0000-0xfffff.

    `rom` is the system ROM, whose end is seen at 0xfffff too; `mmio` takes the handler.  RAM begins at address 0 and has 1 MiB at least.
    """

    state: PciState

    def __init__(self, memory: GuestMemory, mmio: Bus, rom: Region | None) -> None:
        super().__init__(
            "host-bridge",
            0x8086,
            0x1237,
            0x060000,
            revision_id=2,
            subsystem_vendor_id=_SUBSYSTEM_VENDOR,
            subsystem_id=_SUBSYSTEM,
        )
        self._memory = memory
        self._ram = memory.regions[0]
        self._rom = rom
        self._segments = [(base, base + _SEGMENT_BYTES) for base in range(SHADOW_BASE, _SYSTEM_BIOS, _SEGMENT_BYTES)]
        self._segments.append((_SYSTEM_BIOS, SHADOW_END))
        # By segment, and the video memory after the last: overlays, and what RE and WE they stand for.
        self._shown: dict[int, Overlay] = {}
        self._shadowing = [-1] * (len(self._segments) + 1)
        self.allow(PAM0, PAM_REGISTERS, int.from_bytes(b"\x30" + b"\x33" * 6, "little"))
        self.allow(SMRAM, 1, _SMRAM_WRITABLE)
        self.preset(SMRAM, 1, _C_BASE_SEG)
        self.on_config_write(PAM0, PAM_REGISTERS, self._update)
        self.on_config_write(SMRAM, 1, self._smram_written)
        mmio.add(SHADOW_BASE, SHADOW_END - SHADOW_BASE, self, "shadow-ram")
        self._update()

    # -- configuration

    def _nibble(self, segment: int) -> int:
        """RE and WE of a segment: PAM0's upper half is the system BIOS, the lower halves come first in all others."""
        if segment == len(self._segments) - 1:
            return int(self.state.config[PAM0]) >> 4 & 3
        return int(self.state.config[PAM0 + 1 + segment // 2]) >> 4 * (segment & 1) & 3

    def _smram_written(self) -> None:
        config = self.state.config
        if config[SMRAM] & _D_LCK:  # 3.2.22: D_OPEN is cleared and the register read-only until reset
            config[SMRAM] &= ~_D_OPEN
            self.allow(SMRAM, 1, 0)
        self._update()

    def _update(self) -> None:
        """Lays new overlays where a register changed, all at once: each change of the map makes the engine forget translations."""
        old: list[Overlay] = []
        new: list[_Layer] = []
        places: list[int] = []  # of the new ones: a segment's index, or that of the video memory
        wanted = [self._nibble(k) for k in range(len(self._segments))]
        smram = self.state.config[SMRAM]
        open_to_all = smram & _D_OPEN and smram & _G_SMRAME and not smram & _D_CLS
        wanted.append(READ_ENABLE | WRITE_ENABLE if open_to_all else 0)
        for place, shadowing in enumerate(wanted):
            if shadowing == self._shadowing[place]:
                continue
            self._shadowing[place] = shadowing
            shown = self._shown.pop(place, None)
            if shown is not None:
                old.append(shown)
            layer = self._layer(place, shadowing)
            if layer is not None:
                new.append(layer)
                places.append(place)
        if old or new:
            self._shown |= dict(zip(places, self._memory.replace(old, list(new)), strict=True))

    def _layer(self, place: int, shadowing: int) -> _Layer | None:
        """What has to lie over the RAM of a segment, or over the video memory's window; None where nothing has to."""
        if place == len(self._segments):
            return _Layer(VIDEO_BASE, VIDEO_BYTES, self._ram, VIDEO_BASE - self._ram.base, True) if shadowing else None
        if shadowing == READ_ENABLE | WRITE_ENABLE:
            return None
        base, end = self._segments[place]
        if shadowing == READ_ENABLE:
            return _Layer(base, end - base, self._ram, base - self._ram.base)
        rom = self._rom
        if rom is None or SHADOW_END - base > min(rom.size_bytes, ISA_ROM_BYTES):
            return _Layer(base, end - base)
        return _Layer(base, end - base, rom, rom.size_bytes - (SHADOW_END - base))

    # -- accesses that no memory answers, offsets from SHADOW_BASE

    def read(self, offset: int, size: int) -> int:
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        for k in range(size):
            address = SHADOW_BASE + offset + k
            segment = min((offset + k) // _SEGMENT_BYTES, len(self._segments) - 1)
            if self._shadowing[segment] == WRITE_ENABLE:
                self._memory.store(self._ram, address - self._ram.base, bytes([value >> 8 * k & 0xFF]))

    # -- life

    def reset(self) -> None:
        super().reset()
        self.allow(SMRAM, 1, _SMRAM_WRITABLE)
        self._update()

    def load(self, saved: dict[str, Any]) -> None:
        super().load(saved)
        self.allow(SMRAM, 1, 0 if self.state.config[SMRAM] & _D_LCK else _SMRAM_WRITABLE)
        self._update()
