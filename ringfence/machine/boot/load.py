"""Loads a kernel, its initrd and command line, and says how the vCPU has to start.

    source     how it starts ("protocol")
    bzImage    "linux-elf64": the vmlinux inside is unpacked on the host and entered at its startup_64
               "linux-bzimage64": the image itself is entered at + 0x200 and unpacks itself, slowly under emulation
    ELF64      "linux-elf64": entered at e_entry; a kernel other than Linux may ignore RSI
    either     "pvh": 32-bit entry named by the kernel's PVH note

The Linux ways follow Documentation/arch/x86/boot.rst ("64-bit boot protocol"): RSI points to the zero page, the first 4 GiB are
mapped one to one, interrupts are off.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ringfence.core.errors import ImageError, UserError
from ringfence.core.trace import tracer
from ringfence.core.units import PAGE_BYTES, format_size
from ringfence.machine.boot import bzimage, cpu_state, elf, files, layout, linux, pvh, unpack
from ringfence.machine.boot.files import Source
from ringfence.memory.guest_memory import GuestMemory

_trace = tracer("boot")

Prefer = Literal["auto", "elf", "bzimage", "pvh"]
Protocol = Literal["linux-elf64", "linux-bzimage64", "pvh"]


@dataclass(frozen=True)
class BootState:
    """Where the vCPU starts.  `registers` are for `Engine.write_state`; addresses are guest physical, sizes in bytes."""

    protocol: Protocol
    registers: dict[str, int] = field(repr=False)
    entry: int
    kernel_base: int
    kernel_end: int
    initrd_base: int
    initrd_bytes: int
    note: str = ""
    """Why a slower way than the best was taken; for the log."""


@dataclass(frozen=True)
class _Loaded:
    """A kernel in guest memory, and what its format says about the rest."""

    protocol: Protocol
    entry: int
    base: int
    end: int
    image: bzimage.BzImage | None
    note: str = ""


def load_kernel(
    memory: GuestMemory,
    kernel: Source,
    initrd: Source | Sequence[Source] | None = None,
    cmdline: str = "",
    *,
    acpi_rsdp: int | None = None,
    reserved: Iterable[tuple[int, int]] = (),
    prefer: Prefer = "auto",
) -> BootState:
    """Puts everything into `memory` (RAM as `layout.add_ram` made it) and returns the state to start from.

    `initrd` may be a list, joined in order; `acpi_rsdp` is what `acpi.build_tables` returned; `reserved` are further (base, bytes)
    ranges for the guest's memory map.  `prefer="auto"` takes the fastest way that works; "elf", "bzimage" and "pvh" insist on one.
    Raises UserError (ImageError for a damaged or unsuitable file), and then `memory` may be partly written.
    """
    name = files.display_name(kernel, "kernel")
    loaded = _load(memory, files.read(kernel, "kernel"), name, prefer)
    image = loaded.image
    linux.write_cmdline(memory, cmdline, image.cmdline_size if image else linux.DEFAULT_CMDLINE_MAX_BYTES)
    initrd_base, initrd_bytes = _place_initrd(memory, files.join_initrds(initrd), loaded)
    e820 = layout.memory_map(memory, reserved)
    if loaded.protocol == "pvh":
        info_addr = pvh.write_start_info(memory, (initrd_base, initrd_bytes), e820, acpi_rsdp)
        registers = cpu_state.protected_mode(memory, loaded.entry, ebx=info_addr)
    else:
        header = image.header if image else None
        page_addr = linux.write_zero_page(memory, header, (initrd_base, initrd_bytes), e820, acpi_rsdp)
        registers = cpu_state.long_mode(memory, loaded.entry, rsi=page_addr)
    if _trace:
        _trace("%s: %s, entry %#x, kernel %#x-%#x, initrd %#x", name, loaded.protocol, loaded.entry, loaded.base, loaded.end, initrd_base)
    return BootState(loaded.protocol, registers, loaded.entry, loaded.base, loaded.end, initrd_base, initrd_bytes, loaded.note)


def unpack_vmlinux(data: bytes, name: str = "The kernel") -> bytes | None:
    """The ELF file inside the bzImage `data`, None when it is packed in a way that only the kernel itself can undo (LZO).

    Raises ImageError when `data` is no whole bzImage.
    """
    if not bzimage.is_bzimage(data):
        raise files.not_a_kernel(data, name)
    return _unpack(bzimage.parse(data, name), name)[0]


def _load(memory: GuestMemory, data: bytes, name: str, prefer: Prefer) -> _Loaded:
    if data.startswith(elf.MAGIC):
        if prefer == "bzimage":
            raise UserError(f"{name} is an ELF file, not a bzImage.", "Give a bzImage, or leave the choice of boot protocol open.")
        return _load_elf(memory, data, name, prefer, None)
    if not bzimage.is_bzimage(data):
        raise files.not_a_kernel(data, name)
    image = bzimage.parse(data, name)
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
    return _Loaded("linux-elf64", kernel.entry, kernel.base, kernel.end, image)


def _load_bzimage(memory: GuestMemory, image: bzimage.BzImage, name: str, note: str) -> _Loaded:
    """At pref_address, or where a relocatable image finds room above 1 MiB; it needs init_size bytes to unpack itself."""
    bases = [image.pref_address]
    if image.relocatable:
        bases.append(-(-layout.HIGH_MEMORY_ADDR // image.kernel_alignment) * image.kernel_alignment)
    for base in bases:
        if base >= layout.HIGH_MEMORY_ADDR and base + image.init_size <= layout.low_ram_end(memory):
            memory.write(base, image.code)
            return _Loaded("linux-bzimage64", base + bzimage.ENTRY64_OFFSET, base, base + image.init_size, image, note)
    raise elf.too_large(name, min(bases), image.init_size, memory)


def _place_initrd(memory: GuestMemory, initrd: bytes, kernel: _Loaded) -> tuple[int, int]:
    """Copies the initrd to the highest page-aligned place that the kernel allows and returns (address, bytes); (0, 0) for none."""
    if not initrd:
        return 0, 0
    image = kernel.image
    address_max = image.initrd_addr_max if image else linux.DEFAULT_INITRD_ADDR_MAX
    low_end = min(layout.low_ram_end(memory), address_max + 1)
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
