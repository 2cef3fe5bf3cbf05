"""bzImage: the setup header of a Linux kernel image and the kernel packed inside.

Linux Documentation/arch/x86/boot.rst.  Of an image's three ways in, the later ones came with later protocols:

    16 bits  the setup code itself, in real mode, with a BIOS below it: every image
    32 bits  the protected-mode code's start (code32_start): protocol 2.02 on, where a command line may lie anywhere
    64 bits  0x200 bytes after that start: protocol 2.12 on, where xloadflags says so

    0x000  boot sector and setup code, (setup_sects + 1) * 512 bytes; the setup header from 0x1f1 on
    then   protected-mode code, syssize * 16 bytes: loaded at pref_address;
           payload_offset into it lies the packed vmlinux
"""

from __future__ import annotations

import struct

from ringfence.core.errors import ImageError
from ringfence.core.record import Record

HEADER_OFFSET = 0x1F1
ENTRY64_OFFSET = 0x200
HEADER_END_MAX = 0x290  # where boot_params has its next field (edd_mbr_sig_buffer)

_BOOT_FLAG_OFFSET, _MAGIC_OFFSET, _MAGIC = 0x1FE, 0x202, b"HdrS"
_LOADED_HIGH = 1 << 0
_DEFAULT_INITRD_ADDR_MAX = 0x37FF_FFFF
_DEFAULT_CODE_ADDR = 0x10_0000
_XLF_KERNEL_64 = 1 << 0
_XLF_CAN_BE_LOADED_ABOVE_4G = 1 << 1
_SECTOR_BYTES = 512
_FIXED_END = 0x264
_CMDLINE_MAX_BYTES_UNSAID = 255


class BzImage(Record):
    """The fields of the setup header that a loader needs, by their names in boot.rst, and the image's parts."""

    header: bytes  # the setup header as it stands in the file, from HEADER_OFFSET on
    setup: memoryview  # boot sector and setup code
    entry_bits: int  # the widest mode that the image can be entered in: 16, 32 or 64
    loaded_high: bool
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
    """Raises ImageError when the image is cut short; `name` is for the message."""
    if len(data) < 0x230:
        raise _truncated(name, len(data), 0x230)
    (version,) = struct.unpack_from("<H", data, 0x206)

    def field(since: int, form: str, offset: int, absent: int) -> int:
        """The fields that came with protocol `since` hold anything in older images."""
        return (
            int(struct.unpack_from(form, data, offset)[0]) if version >= since and offset + struct.calcsize(form) <= len(data) else absent
        )

    setup_sects, syssize = data[0x1F1] or 4, int.from_bytes(data[0x1F4 : 0x1F8 if version >= 0x204 else 0x1F6], "little")
    xloadflags = field(0x20C, "<H", 0x236, 0)
    loaded_high = bool(field(0x200, "<B", 0x211, 0) & _LOADED_HIGH)
    code32_start = field(0x200, "<I", 0x214, 0)
    code_at = (setup_sects + 1) * _SECTOR_BYTES
    code_end = code_at + syssize * 16 if version >= 0x204 or syssize else len(data)
    # The build rounds syssize up to 16 bytes without always padding the file.
    if len(data) <= max(code_at, code_end - 16):
        raise _truncated(name, len(data), code_end)
    payload_at, payload_length = code_at + field(0x208, "<I", 0x248, 0), field(0x208, "<I", 0x24C, 0)
    if payload_length and payload_at + payload_length > len(data):
        raise _truncated(name, len(data), payload_at + payload_length)
    code = memoryview(data)[code_at:]
    header_end = min(0x202 + data[0x201], HEADER_END_MAX, code_at)
    return BzImage(
        header=data[HEADER_OFFSET : max(header_end, _FIXED_END)],
        setup=memoryview(data)[:code_at],
        entry_bits=_entry_bits(version, xloadflags, loaded_high, code32_start, len(code)),
        loaded_high=loaded_high,
        code=code,
        payload=memoryview(data)[payload_at : payload_at + payload_length],
        version=version,
        xloadflags=xloadflags,
        kernel_alignment=max(field(0x205, "<I", 0x230, 1), 1),
        relocatable=bool(field(0x205, "<B", 0x234, 0)),
        pref_address=field(0x20A, "<Q", 0x258, 0) or code32_start or _DEFAULT_CODE_ADDR,
        init_size=max(field(0x20A, "<I", 0x260, 0), len(code)),
        initrd_addr_max=field(0x203, "<I", 0x22C, _DEFAULT_INITRD_ADDR_MAX),
        cmdline_size=field(0x206, "<I", 0x238, 0) or _CMDLINE_MAX_BYTES_UNSAID,
    )


def _entry_bits(version: int, xloadflags: int, loaded_high: bool, code32_start: int, code_bytes: int) -> int:
    if version >= 0x20C and xloadflags & _XLF_KERNEL_64 and code_bytes > ENTRY64_OFFSET:
        return 64
    return 32 if version >= 0x202 and loaded_high and code32_start else 16


def _truncated(name: str, has_bytes: int, needs_bytes: int) -> ImageError:
    return ImageError(
        f"{name} is cut short: it has {has_bytes} bytes, its setup header speaks of {needs_bytes}.", "Copy or download the file again."
    )
