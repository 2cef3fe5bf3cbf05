"""Loads a kernel, its initrd and command line, and says how the vCPU has to start.

    source       how it starts ("protocol")
    bzImage      "linux-elf64", "linux-elf32": the vmlinux inside is unpacked on the host and entered at its startup code
                 "linux-bzimage64", "linux-bzimage32": the image itself is entered and unpacks itself, slowly under emulation
                 "linux-bzimage16": its setup code is entered in real mode; needs a BIOS, so the machine starts through firmware
    ELF          "linux-elf64", "linux-elf32": entered at e_entry; a kernel other than Linux may ignore RSI
    with a Multiboot header, ELF or not
                 "multiboot": entered in 32-bit protected mode
    any          "pvh": 32-bit entry named by the kernel's PVH note

The Linux ways follow Documentation/arch/x86/boot.rst ("64-bit boot protocol", "32-bit boot protocol"): RSI points to the zero page,
interrupts are off; with 64 bits the first 4 GiB are mapped one to one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

from ringfence.core.errors import ImageError, UserError
from ringfence.core.record import Record
from ringfence.core.trace import tracer
from ringfence.core.units import PAGE_BYTES, format_size
from ringfence.machine.boot import bzimage, cpu_state, elf, files, layout, linux, multiboot, pvh, realmode, unpack
from ringfence.machine.boot.files import Source
from ringfence.memory.guest_memory import GuestMemory

_trace = tracer("boot")

Prefer = Literal["auto", "elf", "bzimage", "pvh", "multiboot", "setup"]
Protocol = Literal["linux-elf64", "linux-elf32", "linux-bzimage64", "linux-bzimage32", "linux-bzimage16", "multiboot", "pvh"]
_IN_32_BITS = ("linux-elf32", "linux-bzimage32")


class BootState(Record):
    """Where the vCPU starts.  `registers` are for `Engine.write_state`; addresses are guest physical, sizes in bytes."""

    UNSHOWN: ClassVar = frozenset(("registers",))

    protocol: Protocol
    registers: dict[str, int]
    entry: int
    kernel_base: int
    kernel_end: int
    initrd_base: int
    initrd_bytes: int
    note: str = ""
    """Why a slower way than the best was taken; for the log."""


class _Loaded(Record):
    """A kernel in guest memory, and what its format says about the rest."""

    protocol: Protocol
    entry: int
    base: int
    end: int
    image: bzimage.BzImage | None
    note: str = ""


def needs_firmware(kernel: Source) -> bool:
    """Whether the kernel can be entered only where a BIOS runs.  Raises UserError when there is no such file."""
    data = files.read(kernel, "kernel")
    if data.startswith(elf.MAGIC) or not bzimage.is_bzimage(data) or multiboot.find_header(data) is not None:
        return False
    return bzimage.parse(data, files.display_name(kernel, "kernel")).entry_bits == 16


def load_kernel(
    memory: GuestMemory,
    kernel: Source,
    initrd: Source | Sequence[Source] | None = None,
    cmdline: str = "",
    *,
    acpi_rsdp: int | None = None,
    reserved: Iterable[tuple[int, int]] = (),
    prefer: Prefer = "auto",
    behind_firmware: bool = False,
) -> BootState:
    """Puts everything into `memory` (RAM as `layout.add_ram` made it) and returns the state to start from.

    `initrd` may be a list, joined in order; `acpi_rsdp` is what `acpi.build_tables` returned; `reserved` are further (base, bytes)
    ranges for the guest's memory map.  `prefer="auto"` takes the fastest way that works; "elf", "bzimage", "pvh", "multiboot" and
    "setup" (real mode) insist on one.  `behind_firmware` says that firmware has run: a BIOS can be called, the screen is set up, the
    ACPI tables are firmware's matter, and the top of RAM is taken.
    Raises UserError (ImageError for a damaged or unsuitable file), and then `memory` may be partly written.
    """
    name = files.display_name(kernel, "kernel")
    loaded = _load(memory, files.read(kernel, "kernel"), name, prefer, behind_firmware)
    e820 = layout.memory_map(memory, reserved, behind_firmware=behind_firmware)
    initrd_base = initrd_bytes = 0
    if loaded.protocol == "multiboot":
        modules = _modules(initrd)
        line = f"{kernel if isinstance(kernel, str | os.PathLike) else 'kernel'} {cmdline}".rstrip()
        info_addr = multiboot.write_info(memory, line, modules, loaded.end, e820, text_screen=behind_firmware)
        registers = cpu_state.protected_mode(memory, loaded.entry, eax=multiboot.LOADER_MAGIC, ebx=info_addr)
    else:
        initrd_base, initrd_bytes = place = _place_initrd(memory, files.join_initrds(initrd), loaded, behind_firmware)
        if loaded.protocol == "linux-bzimage16" and loaded.image is not None:
            registers, _ = realmode.load(memory, loaded.image, cmdline, place, name)
        else:
            registers = _enter_linux(memory, loaded, cmdline, place, e820, acpi_rsdp, behind_firmware)
    if _trace:
        _trace("%s: %s, entry %#x, kernel %#x-%#x, initrd %#x", name, loaded.protocol, loaded.entry, loaded.base, loaded.end, initrd_base)
    return BootState(loaded.protocol, registers, loaded.entry, loaded.base, loaded.end, initrd_base, initrd_bytes, loaded.note)


def _enter_linux(
    memory: GuestMemory,
    loaded: _Loaded,
    cmdline: str,
    initrd: tuple[int, int],
    e820: Sequence[layout.E820Entry],
    acpi_rsdp: int | None,
    behind_firmware: bool,
) -> dict[str, int]:
    image = loaded.image
    linux.write_cmdline(memory, cmdline, image.cmdline_size if image else linux.DEFAULT_CMDLINE_MAX_BYTES)
    if loaded.protocol == "pvh":
        return cpu_state.protected_mode(memory, loaded.entry, ebx=pvh.write_start_info(memory, initrd, e820, acpi_rsdp))
    header = image.header if image else None
    page_addr = linux.write_zero_page(memory, header, initrd, e820, acpi_rsdp, text_screen=behind_firmware)
    if loaded.protocol in _IN_32_BITS:
        return cpu_state.protected_mode(memory, loaded.entry, esi=page_addr)
    return cpu_state.long_mode(memory, loaded.entry, rsi=page_addr)


def _modules(initrd: Source | Sequence[Source] | None) -> list[multiboot.Module]:
    """Of Multiboot each initrd is a module of its own."""
    sources = [] if initrd is None else [initrd] if isinstance(initrd, str | os.PathLike | bytes) else list(initrd)
    return [multiboot.Module(files.read(source, "initrd"), "" if isinstance(source, bytes) else os.fspath(source)) for source in sources]


def unpack_vmlinux(data: bytes, name: str = "The kernel") -> bytes | None:
    """The ELF file inside the bzImage `data`, None when it is packed in a way that only the kernel itself can undo (LZO).

    Raises ImageError when `data` is no whole bzImage.
    """
    if not bzimage.is_bzimage(data):
        raise files.not_a_kernel(data, name)
    return _unpack(bzimage.parse(data, name), name)[0]


def _load(memory: GuestMemory, data: bytes, name: str, prefer: Prefer, behind_firmware: bool) -> _Loaded:
    header = multiboot.find_header(data) if prefer in ("auto", "multiboot") else None
    if header is not None and (header.addresses is not None or data.startswith(elf.MAGIC)):
        entry, base, end = multiboot.load(memory, data, header, name)
        return _Loaded("multiboot", entry, base, end, None)
    if prefer == "multiboot":
        raise ImageError(f"{name} has no Multiboot header in its first 8 KiB.", "Leave the choice of boot protocol open.")
    if data.startswith(elf.MAGIC):
        if prefer in ("bzimage", "setup"):
            raise UserError(f"{name} is an ELF file, not a bzImage.", "Give a bzImage, or leave the choice of boot protocol open.")
        return _load_elf(memory, data, name, prefer, None)
    if not bzimage.is_bzimage(data):
        raise files.not_a_kernel(data, name)
    image = bzimage.parse(data, name)
    if prefer == "setup" or image.entry_bits == 16:
        if not behind_firmware:
            raise ImageError(
                f"{name} can be entered in real mode only, where a BIOS runs.",
                "Let the machine start through firmware: --firmware seabios.",
            )
        base = layout.HIGH_MEMORY_ADDR
        return _Loaded("linux-bzimage16", 0, base, base + len(image.code), image, "its setup code runs in real mode")
    if prefer == "bzimage":
        return _load_bzimage(memory, image, name, "")
    unpacked, why_not = _unpack(image, name)
    if unpacked is not None:
        return _load_elf(memory, unpacked, name, prefer, image)
    if prefer != "auto":
        raise ImageError(f"{name} cannot be unpacked here: {why_not}.", "Leave the choice of boot protocol open, or give the vmlinux file.")
    return _load_bzimage(memory, image, name, why_not)


def _unpack(image: bzimage.BzImage, name: str) -> tuple[bytes | None, str]:
    """(ELF file, "") or (None, why there is none)."""
    if not image.payload:
        return None, "the image names no packed kernel"
    try:
        unpacked = unpack.unpack(image.payload)
    except unpack.UnknownPackingError as error:
        return None, f"the packing is not known ({error})"
    except unpack.UnpackError as error:
        raise ImageError(
            f"{name} is damaged: the kernel packed in it cannot be unpacked ({error}).", "Copy or download it again."
        ) from error
    if not unpacked.startswith(elf.MAGIC):
        return None, "the packed kernel is no ELF file"
    return unpacked, ""


def _load_elf(memory: GuestMemory, data: bytes, name: str, prefer: Prefer, image: bzimage.BzImage | None) -> _Loaded:
    kernel = elf.parse(data, name)
    if prefer == "pvh" and kernel.pvh_entry is None:
        raise ImageError(f"{name} has no PVH entry point.", "Leave the choice of boot protocol open, or build it with CONFIG_PVH.")
    elf.load(memory, kernel, name)
    if prefer == "pvh" and kernel.pvh_entry is not None:
        return _Loaded("pvh", kernel.pvh_entry, kernel.base, kernel.end, image)
    return _Loaded("linux-elf64" if kernel.bits == 64 else "linux-elf32", kernel.entry, kernel.base, kernel.end, image)


def _load_bzimage(memory: GuestMemory, image: bzimage.BzImage, name: str, note: str) -> _Loaded:
    """At pref_address, or where a relocatable image finds room above 1 MiB; it needs init_size bytes to unpack itself."""
    bases = [image.pref_address]
    if image.relocatable:
        bases.append(-(-layout.HIGH_MEMORY_ADDR // image.kernel_alignment) * image.kernel_alignment)
    for base in bases:
        if base >= layout.HIGH_MEMORY_ADDR and base + image.init_size <= layout.low_ram_end(memory):
            memory.write(base, image.code)
            if image.entry_bits == 32:
                return _Loaded("linux-bzimage32", base, base, base + image.init_size, image, note)
            return _Loaded("linux-bzimage64", base + bzimage.ENTRY64_OFFSET, base, base + image.init_size, image, note)
    raise elf.too_large(name, min(bases), image.init_size, memory)


def _place_initrd(memory: GuestMemory, initrd: bytes, kernel: _Loaded, behind_firmware: bool) -> tuple[int, int]:
    """Copies the initrd to the highest page-aligned place that the kernel allows and returns (address, bytes); (0, 0) for none."""
    if not initrd:
        return 0, 0
    image = kernel.image
    address_max = image.initrd_addr_max if image else linux.DEFAULT_INITRD_ADDR_MAX
    low_end = min(layout.usable_end(memory, behind_firmware=behind_firmware), address_max + 1)
    candidates = [(low_end, kernel.end)]
    if image and image.initrd_above_4g and kernel.protocol != "pvh":
        candidates += [(region.end, region.base) for region in memory.regions if region.base >= layout.HIGH_RAM_ADDR]
    for end, start in candidates:
        base = (end - len(initrd)) // PAGE_BYTES * PAGE_BYTES
        if base >= start:
            memory.write(base, initrd)
            return base, len(initrd)
    raise UserError(
        f"The initrd ({format_size(len(initrd))}) does not fit beside the kernel into {format_size(memory.size_bytes)} of memory.",
        f"Give the machine more memory, for example --memory {max(512, 4 * (kernel.end + len(initrd) >> 20))}M.",
    )
