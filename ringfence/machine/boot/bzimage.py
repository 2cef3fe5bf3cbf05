"""bzImage: the setup header of a Linux kernel image and the kernel packed inside.

Linux Documentation/arch/x86/boot.rst, protocol 2.12 and later (the first that names a 64-bit entry point).

    0x000  boot sector and setup code, (setup_sects + 1) * 512 bytes; the setup header from 0x1f1 on
    then   protected-mode code, syssize * 16 bytes: loaded at pref_address, 64-bit entry at + 0x200;
           payload_offset into it lies the packed vmlinux
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ringfence.core.errors import ImageError

HEADER_OFFSET = 0x1F1
ENTRY64_OFFSET = 0x200
HEADER_END_MAX = 0x290  # where boot_params has its next field (edd_mbr_sig_buffer)

_BOOT_FLAG_OFFSET, _MAGIC_OFFSET, _MAGIC = 0x1FE, 0x202, b"HdrS"
_MIN_VERSION = 0x20C
_XLF_KERNEL_64 = 1 << 0
_XLF_CAN_BE_LOADED_ABOVE_4G = 1 << 1
_SECTOR_BYTES = 512
_FIXED_END = 0x264
_CMDLINE_MAX_BYTES_UNSAID = 255


@dataclass(frozen=True)
class BzImage:
    """The fields of the setup header that a loader needs, by their names in boot.rst, and the image's parts."""

    header: bytes  # the setup header as it stands in the file, from HEADER_OFFSET on
    code: memoryview  # protected-mode code, to be loaded as it is
    payload: memoryview  # the packed vmlinux; empty when the image names none
    version: int
    xloadflags: int
    kernel_alignment: int
    relocatable: bool
    pref_address: int
    init_size: int
    initrd_addr_max: int
    cmdline_size: int

    @property
    def initrd_above_4g(self) -> bool:
        return bool(self.xloadflags & _XLF_CAN_BE_LOADED_ABOVE_4G)


def is_bzimage(data: bytes) -> bool:
    return data[_BOOT_FLAG_OFFSET : _BOOT_FLAG_OFFSET + 2] == b"\x55\xaa" and data[_MAGIC_OFFSET : _MAGIC_OFFSET + 4] == _MAGIC


def parse(data: bytes, name: str) -> BzImage:
    """Raises ImageError when the image is cut short or has no 64-bit entry point; `name` is for the message."""
    if len(data) < 0x211:
        raise _truncated(name, len(data), _FIXED_END)
    (version,) = struct.unpack_from("<H", data, 0x206)
    if version < _MIN_VERSION:
        raise _not_64_bit(name, f"it follows boot protocol {version >> 8}.{version & 0xFF:02d}")
    if len(data) < _FIXED_END:
        raise _truncated(name, len(data), _FIXED_END)
    setup_sects, syssize = data[0x1F1] or 4, int.from_bytes(data[0x1F4:0x1F8], "little")
    xloadflags, cmdline_size = struct.unpack_from("<HI", data, 0x236)
    if not xloadflags & _XLF_KERNEL_64:
        raise _not_64_bit(name, "it is built for 32-bit processors")
    code_at = (setup_sects + 1) * _SECTOR_BYTES
    code_end = code_at + syssize * 16
    # The build rounds syssize up to 16 bytes without always padding the file.
    if len(data) <= max(code_at + ENTRY64_OFFSET, code_end - 16):
        raise _truncated(name, len(data), code_end)
    payload_offset, payload_length = struct.unpack_from("<II", data, 0x248)
    payload_at = code_at + payload_offset
    if payload_length and payload_at + payload_length > len(data):
        raise _truncated(name, len(data), payload_at + payload_length)
    (code32_start,) = struct.unpack_from("<I", data, 0x214)
    initrd_addr_max, kernel_alignment, relocatable = struct.unpack_from("<IIB", data, 0x22C)
    pref_address, init_size = struct.unpack_from("<QI", data, 0x258)
    code = memoryview(data)[code_at:]
    header_end = min(0x202 + data[0x201], HEADER_END_MAX, code_at)
    return BzImage(
        header=data[HEADER_OFFSET : max(header_end, _FIXED_END)],
        code=code,
        payload=memoryview(data)[payload_at : payload_at + payload_length],
        version=version,
        xloadflags=xloadflags,
        kernel_alignment=max(kernel_alignment, 1),
        relocatable=bool(relocatable),
        pref_address=pref_address or code32_start,
        init_size=max(init_size, len(code)),
        initrd_addr_max=initrd_addr_max,
        cmdline_size=cmdline_size or _CMDLINE_MAX_BYTES_UNSAID,
    )


def _truncated(name: str, has_bytes: int, needs_bytes: int) -> ImageError:
    return ImageError(
        f"{name} is cut short: it has {has_bytes} bytes, its setup header speaks of {needs_bytes}.", "Copy or download the file again."
    )


def _not_64_bit(name: str, why: str) -> ImageError:
    return ImageError(
        f"{name} has no 64-bit entry point ({why}); entry in 16- or 32-bit mode comes in a later version.", "Give a kernel for x86-64."
    )
