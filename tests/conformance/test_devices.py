"""Every device keeps the contract of `devices.api`.

`FACTORIES` is the registry: a device and its handlers with the number of bytes each decodes.  A new device adds a line.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from ringfence.bus.bus import Bus, Handler
from ringfence.bus.irq import IrqLine, IrqPin
from ringfence.bus.pci import CONFIG_BYTES, PciFunction
from ringfence.core.clock import ManualClock
from ringfence.core.errors import SnapshotError
from ringfence.devices.a20 import A20Gate
from ringfence.devices.acpi_pm import AcpiPm
from ringfence.devices.api import Device
from ringfence.devices.apic import ApicBus, LocalApic
from ringfence.devices.ata_drive import AtaDrive
from ringfence.devices.atapi_drive import AtapiDrive
from ringfence.devices.debug_console import DebugConsole
from ringfence.devices.debug_exit import DebugExit
from ringfence.devices.dma8237 import Dma8237
from ringfence.devices.floppy import Floppy
from ringfence.devices.fw_cfg import FwCfg
from ringfence.devices.i440fx import I440Fx
from ringfence.devices.i8042 import I8042
from ringfence.devices.ide_channel import IdeChannel
from ringfence.devices.ide_pci import PiixIde
from ringfence.devices.ioapic import IoApic
from ringfence.devices.kvmclock import KvmClock
from ringfence.devices.nvme import Nvme
from ringfence.devices.parallel import ParallelPort
from ringfence.devices.pic8259 import PicPair
from ringfence.devices.piix3 import ROUTABLE_IRQS, Piix3
from ringfence.devices.piix4_pm import Piix4Pm
from ringfence.devices.pit8254 import Pit
from ringfence.devices.ports import BytePorts
from ringfence.devices.ps2 import Ps2Device
from ringfence.devices.ps2_keyboard import Ps2Keyboard
from ringfence.devices.ps2_mouse import Ps2Mouse
from ringfence.devices.reset import ResetControl
from ringfence.devices.rtc import Rtc
from ringfence.devices.testdev import TestDevice
from ringfence.devices.uart16550 import Uart
from ringfence.devices.vga_card import VgaIsa, VgaPci
from ringfence.memory.guest_memory import GuestMemory
from tests.unit.virtio.driver import Disk, Messages, Posted

MSRS = (0x11, 0x12, 0x1B, 0x6E0, 0x4B56_4D00, 0x4B56_4D01, 0x4B56_4D04, *range(0x800, 0x840))


def ignore(*_: Any) -> None:
    """An outside that does not answer."""


@dataclass
class Rig:
    """A device in a world of its own."""

    clock: ManualClock = field(default_factory=lambda: ManualClock(now_ns=10**12, wall_s=1_700_000_000.0))
    memory: GuestMemory = field(default_factory=GuestMemory)
    handlers: list[tuple[Handler, int]] = field(default_factory=list)
    lines: list[Callable[[bool], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.memory.add_ram(0, 0x10000)

    def pin(self) -> IrqPin:
        return IrqLine("irq", ignore).pin()

    def tsc(self) -> int:
        return self.clock.now_ns() * 2


class ConfigSpace:
    """A function's configuration space as a handler."""

    def __init__(self, function: PciFunction) -> None:
        self._function = function

    def read(self, offset: int, size: int) -> int:
        return self._function.read_config(offset, min(size, CONFIG_BYTES - offset))

    def write(self, offset: int, size: int, value: int) -> None:
        self._function.write_config(offset, min(size, CONFIG_BYTES - offset), value)


def uart(rig: Rig) -> Device:
    device = Uart(rig.pin(), None, rig.clock)
    rig.handlers = [(device, 8)]
    return device


def pic(rig: Rig) -> Device:
    device = PicPair(ignore)
    rig.handlers = [(device.master, 2), (device.slave, 2), (device.elcr, 2)]
    rig.lines = [device.input(n) for n in range(16) if n != 2]
    return device


def ioapic(rig: Rig) -> Device:
    device = IoApic(ignore)
    rig.handlers = [(device, 0x1000)]
    rig.lines = [device.input(n) for n in range(24)]
    return device


def apic(rig: Rig) -> Device:
    bus = ApicBus()
    device = LocalApic(0, rig.clock, 2_000_000_000, rig.tsc, ignore, ignore, bus, rig.memory)
    bus.add(device)
    rig.handlers = [(device, 0x1000)]
    rig.lines = [device.set_lint0, device.set_lint1]
    return device


def pit(rig: Rig) -> Device:
    device = Pit(rig.pin(), rig.clock)
    rig.handlers = [(device.ports, 4), (device.port61, 1)]
    return device


def rtc(rig: Rig) -> Device:
    device = Rtc(rig.pin(), rig.clock)
    rig.handlers = [(device, 2)]
    return device


def acpi_pm(rig: Rig) -> Device:
    device = AcpiPm(rig.pin(), rig.clock, ignore)
    rig.handlers = [(device.pm1_event, 4), (device.pm1_control, 2), (device.timer, 4), (device.gpe0, 4)]
    return device


def debug_exit(rig: Rig) -> Device:
    device = DebugExit(ignore)
    rig.handlers = [(device, 4)]
    return device


def reset(rig: Rig) -> Device:
    device = ResetControl(ignore, ignore)
    rig.handlers = [(device.control, 1), (device.port_a, 1), (device.keyboard_data, 1), (device.keyboard_command, 1)]
    return device


def kvmclock(rig: Rig) -> Device:
    return KvmClock(rig.memory, rig.clock, 2_000_000_000, rig.tsc)


def a20(rig: Rig) -> Device:
    device = A20Gate(rig.memory.set_a20)
    rig.handlers = [(ResetControl(ignore, ignore, device).port_a, 1)]
    return device


def i8042(rig: Rig) -> Device:
    keyboard, mouse = Ps2Keyboard(), Ps2Mouse()
    device = I8042(rig.pin(), rig.pin(), rig.clock, keyboard, mouse, A20Gate(ignore), ignore)
    rig.handlers = [(device.data, 1), (device.command, 1)]
    rig.lines = [lambda level: keyboard.key(30, level), lambda level: mouse.buttons(level)]
    return device


def ps2_line(device: Ps2Device) -> tuple[Handler, int]:
    """Stands for the controller: reading takes a byte, writing sends one."""
    return BytePorts(1, lambda _: device.take() or 0, lambda _, value: device.receive(value)), 1


def ps2_keyboard(rig: Rig) -> Device:
    device = Ps2Keyboard()
    rig.handlers = [ps2_line(device)]
    rig.lines = [lambda level, code=code: device.key(code, level) for code in (30, 42, 54, 99, 103, 119)]  # type: ignore[misc]
    return device


def ps2_mouse(rig: Rig) -> Device:
    device = Ps2Mouse()
    rig.handlers = [ps2_line(device)]
    rig.lines = [lambda level: device.buttons(level), lambda level: device.move(300 if level else -40000, 7, -1)]
    return device


def parallel(rig: Rig) -> Device:
    device = ParallelPort(rig.pin(), None, rig.clock)
    rig.handlers = [(device.ports, 3)]
    return device


def device_for_tests(rig: Rig) -> Device:
    device = TestDevice([None if n == 2 else rig.pin() for n in range(24)])
    rig.handlers = [(device.register, 4), (device.flush, 4), (device.irqs, 24), (device.iomem, 0x10000)]
    return device


def ide_isa(rig: Rig) -> Device:
    device = IdeChannel(rig.pin(), (AtaDrive(Disk(64 << 10), Posted()), AtapiDrive(Disk(64 << 10), Posted())))
    rig.handlers = [(device, 8), (device.control, 1)]
    return device


def ide_pci(rig: Rig) -> Device:
    drives = AtaDrive(Disk(64 << 10), Posted()), None, None, AtapiDrive(Disk(64 << 10), Posted())
    device = PiixIde(rig.memory, (rig.pin(), rig.pin()), drives)
    rig.handlers = [(device, 16), *((part, size) for channel in device.channels for part, size in ((channel, 8), (channel.control, 1)))]
    return device


def dma(rig: Rig) -> Device:
    device = Dma8237(rig.memory)
    rig.handlers = [(device.low, 16), (device.high, 32), (device.pages, 16)]
    return device


def floppy(rig: Rig) -> Device:
    device = Floppy(rig.pin(), rig.clock, Dma8237(rig.memory).channel(2), (Disk(160 << 10), None))
    rig.handlers = [(device.ports, 6), (device.port7, 1)]
    return device


def nvme(rig: Rig) -> Device:
    device = Nvme(Disk(1 << 16), rig.memory, Posted(), Messages(), rig.pin())
    rig.handlers = [(device, 0x1080), (device.msix, 0x1000), (ConfigSpace(device), CONFIG_BYTES)]
    return device


def vga_isa(rig: Rig) -> Device:
    device = VgaIsa(rig.memory, rig.clock, 256 << 10)
    rig.handlers = on_buses(device)
    return device


def vga_pci(rig: Rig) -> Device:
    device = VgaPci(rig.memory, rig.clock, b"\x55\xaa" + bytes(1000), 256 << 10)
    bars = [(bar.handler, bar.size_bytes) for bar in device.bars if bar.handler is not None]
    rig.handlers = [*on_buses(device), *bars]
    return device


def i440fx(rig: Rig) -> Device:
    rig.memory = GuestMemory()
    rig.memory.add_ram(0, 1 << 20)
    device = I440Fx(rig.memory, Bus("mmio", 1 << 32), rig.memory.add_backing(1 << 17, "rom"))
    rig.handlers = [(ConfigSpace(device), CONFIG_BYTES), (device, 0x1000)]
    return device


def piix3(rig: Rig) -> Device:
    device = Piix3({irq: rig.pin() for irq in ROUTABLE_IRQS})
    rig.handlers = [(ConfigSpace(device), CONFIG_BYTES)]
    rig.lines = [device.pirq(n) for n in range(4)]
    return device


def piix4_pm(rig: Rig) -> Device:
    device = Piix4Pm(AcpiPm(rig.pin(), rig.clock, ignore, legacy_start=True), Bus("ports", 1 << 16))
    rig.handlers = [(ConfigSpace(device), CONFIG_BYTES), (device.apm, 2), (device, 64)]
    return device


def fw_cfg(rig: Rig) -> Device:
    device = FwCfg(rig.memory, {}, {"etc/file": b"content"})
    rig.handlers = [(device.select, 2), (device, 8)]
    return device


def debug_console(rig: Rig) -> Device:
    device = DebugConsole(ignore)
    rig.handlers = [(device, 1)]
    return device


def on_buses(device: VgaIsa | VgaPci) -> list[tuple[Handler, int]]:
    ports, mmio = Bus("ports", 1 << 16), Bus("mmio", 1 << 32)
    device.map_legacy(ports, mmio)
    return [(entry.handler, min(entry.end - entry.base, 0x1000)) for entry in (*ports, *mmio)]


FACTORIES = (
    dma,
    floppy,
    nvme,
    ide_isa,
    ide_pci,
    uart,
    pic,
    ioapic,
    apic,
    pit,
    rtc,
    acpi_pm,
    debug_exit,
    reset,
    kvmclock,
    a20,
    i8042,
    ps2_keyboard,
    ps2_mouse,
    parallel,
    device_for_tests,
    vga_isa,
    vga_pci,
    i440fx,
    piix3,
    piix4_pm,
    fw_cfg,
    debug_console,
)


@pytest.fixture(params=FACTORIES, ids=lambda factory: factory.__name__)
def factory(request: pytest.FixtureRequest) -> Callable[[Rig], Device]:
    chosen: Callable[[Rig], Device] = request.param
    return chosen


def poke(rig: Rig, device: Device, rng: random.Random) -> None:
    """One thing that a guest, a line or time may do."""
    if rig.handlers:
        handler, count = rng.choice(rig.handlers)
        size = rng.choice((1, 2, 4, 8))
        offset = rng.randrange(count) & (~15 if count > 64 and rng.random() < 0.9 else -1)
        value = rng.getrandbits(rng.choice((4, 8, 8 * size))) & (1 << 8 * size) - 1
        handler.write(offset, size, value)
        assert isinstance(handler.read(offset, size), int)
    if rig.lines and rng.random() < 0.3:
        rng.choice(rig.lines)(rng.random() < 0.5)
    if rng.random() < 0.2:
        rig.clock.advance(rng.choice((1, 1000, 300_000, 10_000_000)))
    if isinstance(device, LocalApic | KvmClock):
        index = rng.choice(MSRS)
        accepted = device.write_msr(index, rng.getrandbits(rng.choice((1, 8, 16, 32, 64))))
        assert isinstance(accepted, bool)
        value_read = device.read_msr(index)
        assert value_read is None or 0 <= value_read < 1 << 64
    if isinstance(device, LocalApic | PicPair) and device.pending():
        assert 0 <= device.acknowledge() < 256
    if isinstance(device, Uart) and rng.random() < 0.1:
        device.receive(rng.randbytes(rng.randrange(40)))


def test_every_access_of_every_size_is_survived(factory: Callable[[Rig], Device]) -> None:
    rig, rng = Rig(), random.Random(1)
    device = factory(rig)
    for handler, count in rig.handlers:
        for offset in range(count):
            for size in (1, 2, 4, 8):
                handler.read(offset, size)
                handler.write(offset, size, rng.getrandbits(8 * size))
                handler.read(offset, size)
    assert device.save()


@pytest.mark.parametrize("seed", range(4))
def test_any_history_can_be_saved(factory: Callable[[Rig], Device], seed: int) -> None:
    """Random use, then: what is saved fits the declared state, and loads into a fresh device as the same."""
    rig, rng = Rig(), random.Random(seed)
    device = factory(rig)
    for _ in range(400):
        poke(rig, device, rng)
    saved = device.save()
    fresh_rig = Rig()
    fresh = factory(fresh_rig)
    fresh_rig.clock.advance(123_456_789)
    fresh_rig.memory.write(0, rig.memory.read(0, 0x10000))
    fresh.load(saved)
    assert time_free(fresh.save()) == time_free(saved)
    fresh_rig.clock.advance(50_000_000)


def time_free(saved: dict[str, Any]) -> dict[str, Any]:
    """Without what follows the wall clock of the process that loads."""
    return {name: value for name, value in saved.items() if name not in ("seen_s", "offset_ns")}


def test_reset_is_idempotent(factory: Callable[[Rig], Device]) -> None:
    rig, rng = Rig(), random.Random(7)
    device = factory(rig)
    for _ in range(200):
        poke(rig, device, rng)
    device.reset()
    first = device.save()
    device.reset()
    assert device.save() == first


def test_save_mutate_load(factory: Callable[[Rig], Device]) -> None:
    rig, rng = Rig(), random.Random(3)
    device = factory(rig)
    for _ in range(50):
        poke(rig, device, rng)
    before = device.save()
    for _ in range(1000):
        poke(rig, device, rng)
        if device.save() != before:
            break
    assert device.save() != before, "no mutation was seen"
    device.load(before)
    assert device.save() == before


def test_every_declared_field_is_saved_and_loaded(factory: Callable[[Rig], Device]) -> None:
    rig = Rig()
    device = factory(rig)
    saved = device.save()
    assert set(device.state.FIELDS) <= set(saved)
    for name in device.state.FIELDS:
        with pytest.raises(SnapshotError):
            device.load({key: value for key, value in saved.items() if key != name})
    with pytest.raises(SnapshotError):
        device.load({**saved, "of another version": 0})
    assert device.save() == saved


def test_pause_is_settled_and_resume_goes_on(factory: Callable[[Rig], Device]) -> None:
    rig, rng = Rig(), random.Random(11)
    device = factory(rig)
    for _ in range(100):
        poke(rig, device, rng)
    device.pause()
    device.pause()
    saved = device.save()
    rig.clock.advance(10**9)
    assert device.save() == saved
    device.resume()
    device.resume()
    for _ in range(100):
        poke(rig, device, rng)
