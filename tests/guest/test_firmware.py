"""Firmware, boot loaders, and kernels of the old ways in: a test looks at the screen, types, and sees how it ended."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ringfence.core.errors import UserError
from ringfence.machine.boot import firmware
from ringfence.machine.machine import Machine
from ringfence.machine.spec import DiskSpec, MachineSpec
from tests.guest import guests
from tests.guest.bare import HERE

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

GRUB = Path("/usr/lib/grub-rescue")
MENU = re.compile(r"GNU GRUB +version.*The highlighted entry", re.DOTALL)
PASS = 42 << 1 | 1


@contextmanager
def machine(**fields: Any) -> Iterator[Machine]:
    """A started machine with a screen that nobody looks at but the test; skips where there is no firmware."""
    try:
        firmware.find("seabios")
    except UserError as reason:
        pytest.skip(reason.cause)
    values: dict[str, Any] = {"memory": "64M", "display": "none", "timeout": 250, **fields}
    with Machine(MachineSpec.build(**values)) as made:
        made.start()
        yield made


def installed(path: Path, package: str) -> Path:
    if not path.is_file():
        pytest.skip(f"{package} is not installed here")
    return path


def assembled(folder: Path, name: str) -> Path:
    """A boot sector on a floppy."""
    try:
        done = subprocess.run(
            ["nasm", "-f", "bin", "-o", str(folder / name), str(HERE / f"{name}.asm")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("nasm is not installed here")
    assert done.returncode == 0, done.stderr
    image = folder / f"{name}.img"
    image.write_bytes((folder / name).read_bytes().ljust(1440 * 1024, b"\0"))
    return image


def passed(made: Machine) -> None:
    status = made.wait(200)
    screen = made.screen_text() if made.board.screen is not None else ""
    assert status.code == PASS, f"{status.report()}\n{screen}\n{made.console.transcript[-1000:].decode(errors='replace')}"


@pytest.mark.parametrize("board", ["pc", "isapc"])
def test_seabios_finds_nothing_to_start(board: str) -> None:
    with machine(board=board, firmware="seabios") as made:
        made.wait_for_text("No bootable device", timeout_s=200)
        assert "SeaBIOS (version" in made.screen_text()


def test_seabios_speaks_on_the_serial_line_where_no_screen_is_asked_for() -> None:
    with machine(firmware="seabios", display=None) as made:
        assert b"SeaBIOS (version" in made.console.wait_for(b"No bootable device", 200)


def test_only_the_kinds_of_drives_that_are_named_are_tried(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"\xeb\xfe".ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))  # one that would start, and loop
    with machine(disks=(DiskSpec(path=disk, format="raw"),), boot=("cdrom",)) as made:
        made.wait_for_text("No bootable device", timeout_s=200)
        assert "Booting from Hard Disk" not in made.screen_text()


def test_grub_from_a_floppy_takes_a_command() -> None:
    floppy = installed(GRUB / "grub-rescue-floppy.img", "grub-rescue-pc")
    with machine(floppies=(DiskSpec(path=floppy, readonly=True),)) as made:
        made.wait_for_text(MENU, timeout_s=240)
        made.type("c")
        made.wait_for_text("\ngrub>", timeout_s=60)
        made.type("echo one plus two\n")
        made.wait_for_text("\none plus two\n", timeout_s=60)


def test_grub_from_a_cd_takes_commands_and_switches_off() -> None:
    cd = installed(GRUB / "grub-rescue-cdrom.iso", "grub-rescue-pc")
    with machine(cdroms=(cd,)) as made:
        made.wait_for_text(MENU, timeout_s=240)
        made.type("c")
        made.wait_for_text("\ngrub>", timeout_s=60)
        made.type("ls (cd)/boot/grub\n")
        made.wait_for_text("i386-pc/", timeout_s=60)
        made.type("halt\n")
        assert made.wait(60).code == 0


def test_grub_from_a_disk_image() -> None:
    disk = installed(GRUB / "grub-rescue-usb.img", "grub-rescue-pc")
    with machine(disks=(DiskSpec(path=disk, snapshot=True, format="raw"),)) as made:
        made.wait_for_text(MENU, timeout_s=240)


def test_every_reset_leads_back(tmp_path: Path) -> None:
    floppy = assembled(tmp_path, "resets")
    with machine(floppies=(DiskSpec(path=floppy),), devices=("debug-exit",)) as made:
        passed(made)


def test_an_image_whose_setup_code_runs_in_real_mode() -> None:
    kernel = installed(Path("/boot/ipxe.lkrn"), "ipxe")
    with machine(kernel=kernel, display=None) as made:
        made.wait_for_text(re.compile(r"iPXE.*Open Source Network Boot Firmware", re.DOTALL), timeout_s=240)


def multiboot(folder: Path, *options: str, flat: bool = False) -> Path:
    kernel = folder / "kernel"
    command = ["gcc", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-Ttext=0x110000", *options]
    try:
        done = subprocess.run(
            [*command, "-o", str(kernel), str(HERE / "multiboot.S")], capture_output=True, text=True, timeout=60, check=False
        )
    except FileNotFoundError:
        pytest.skip("gcc is not installed here")
    assert done.returncode == 0, done.stderr
    if flat:
        subprocess.run(["objcopy", "-O", "binary", str(kernel), str(folder / "flat")], check=True, timeout=60)
        return folder / "flat"
    return kernel


FORMATS = {
    "elf32": (("-m32",), False),
    "elf64": (("-m64", "-Wl,-z,max-page-size=4096"), False),
    "flat": (("-m32", "-DFLAT"), True),
}


@pytest.mark.parametrize("display", [None, "none"], ids=["directly", "with a screen"])
@pytest.mark.parametrize(("options", "flat"), FORMATS.values(), ids=FORMATS)
def test_multiboot_kernels(tmp_path: Path, options: tuple[str, ...], flat: bool, display: str | None) -> None:
    kernel = multiboot(tmp_path, *options, flat=flat)
    modules = []
    for name in ("first", "second"):
        modules.append(tmp_path / name)
        modules[-1].write_bytes(b"0123" * 100)
    with machine(kernel=kernel, initrd=modules, append="one two", devices=("debug-exit",), display=display) as made:
        passed(made)
        assert f"{kernel} one two\n{'T' if display else ''}".encode() in made.console.transcript
        if display:
            assert made.screen_text().startswith("A")


COUNTS = r"(?: +\d+)*? +\d{3,}(?: +\d+)*"  # of each CPU


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("pci=nomsi", r"\s1[6-9]:{} +IO-APIC .*fasteoi +virtio0"),
        ("noapic pci=nomsi", r"\s1[01]:{} +XT-PIC +virtio0"),
        ("acpi=off pci=nomsi", r"\s1[01]:{} +(XT-PIC|IO-APIC.*) +virtio0"),
    ],
)
def test_pci_interrupts_reach_linux_in_every_way(tmp_path: Path, words: str, wanted: str) -> None:
    kernel = guests.debian_cloud_kernel()
    read = "dd if=/dev/vda of=/dev/null bs=4k count=200 iflag=direct\ncat /proc/interrupts\necho all-read\nsleep 1\npoweroff -f\n"
    initrd = guests.initramfs(tmp_path, guests.MOUNTS + guests.load_modules() + read, guests.virtio_modules())
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    spec = {"disks": (DiskSpec(path=disk, format="raw"),), "memory": "256M", "display": None, "firmware": "seabios"}
    with machine(kernel=kernel.image, initrd=[initrd], append=f"console=ttyS0 quiet {words}", **spec) as made:
        text = made.console.wait_for(b"all-read", 240).decode(errors="replace")
        assert re.search(wanted.format(COUNTS), text), text[-3000:]
