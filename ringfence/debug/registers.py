"""Registers as gdb numbers them: target descriptions for amd64 and i386 (GDB manual, appendix G.5.8 "i386 Features").

`rip` (`eip`) is given as a linear address, code segment base added, so that disassembly, breakpoints and steps fit together
in real mode as well.  A feature of our own holds what has no place in gdb's: control and debug registers, descriptor tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_LONG_CODE = 1 << 9  # L in cs_attr
_PE, _VM = 1, 1 << 17
_SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
_FPU_CONTROL = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
_FLAGS = (
    ("", 22, 31), ("ID", 21, 21), ("VIP", 20, 20), ("VIF", 19, 19), ("AC", 18, 18), ("VM", 17, 17), ("RF", 16, 16), ("NT", 14, 14),
    ("OF", 11, 11), ("DF", 10, 10), ("IF", 9, 9), ("TF", 8, 8), ("SF", 7, 7), ("ZF", 6, 6), ("AF", 4, 4), ("PF", 2, 2), ("", 1, 1),
    ("CF", 0, 0),
)  # fmt: skip
_MXCSR = ("IE", "DE", "ZE", "OE", "UE", "PE", "DAZ", "IM", "DM", "ZM", "OM", "UM", "PM")
_VEC128 = """<vector id="v4f" type="ieee_single" count="4"/><vector id="v2d" type="ieee_double" count="2"/>
<vector id="v16i8" type="int8" count="16"/><vector id="v8i16" type="int16" count="8"/>
<vector id="v4i32" type="int32" count="4"/><vector id="v2i64" type="int64" count="2"/>
<union id="vec128"><field name="v4_float" type="v4f"/><field name="v2_double" type="v2d"/>
<field name="v16_int8" type="v16i8"/><field name="v8_int16" type="v8i16"/><field name="v4_int32" type="v4i32"/>
<field name="v2_int64" type="v2i64"/><field name="uint128" type="uint128"/></union>"""


class RegisterError(Exception):
    """The register cannot take this value."""


@dataclass(frozen=True, slots=True)
class Register:
    """One register as gdb sees it.  `set` returns the engine's registers that change."""

    name: str
    bits: int
    type: str
    get: Callable[[dict[str, int]], int]
    set: Callable[[dict[str, int], int], dict[str, int]]
    group: str = ""

    @property
    def size_bytes(self) -> int:
        return self.bits // 8


@dataclass(frozen=True, slots=True)
class Architecture:
    """Numbered registers and their description in XML."""

    name: str
    registers: tuple[Register, ...]
    xml: bytes


def linear_pc(registers: dict[str, int]) -> int:
    """The linear address of the next instruction."""
    if registers["cs_attr"] & _LONG_CODE and registers["efer"] >> 10 & 1:
        return registers["rip"]
    return registers["cs_base"] + registers["rip"] & 0xFFFF_FFFF


def _set_pc(registers: dict[str, int], value: int) -> dict[str, int]:
    if registers["cs_attr"] & _LONG_CODE and registers["efer"] >> 10 & 1:
        return {"rip": value}
    return {"rip": value - registers["cs_base"] & 0xFFFF_FFFF}


def _set_segment(name: str) -> Callable[[dict[str, int], int], dict[str, int]]:
    def change(registers: dict[str, int], value: int) -> dict[str, int]:
        value &= 0xFFFF
        if value == registers[name]:
            return {}
        virtual = bool(registers["rflags"] & _VM)
        if registers["cr0"] & _PE and not virtual:
            raise RegisterError(f"{name} needs a descriptor in protected mode")
        changed = {name: value, f"{name}_base": value << 4}
        if name == "cs":
            changed["cpl"] = 3 if virtual else 0
        return changed

    return change


def _plain(name: str, bits: int, type: str, source: str = "", group: str = "", keep: int = 0) -> Register:
    """A register of the engine under gdb's name.  `keep`: bits of the engine's that gdb's register does not show."""
    field = source or name
    mask = (1 << bits) - 1

    def get(registers: dict[str, int]) -> int:
        return registers.get(field, 0) & mask

    def put(registers: dict[str, int], value: int) -> dict[str, int]:
        value = value & mask | registers.get(field, 0) & keep
        return {field: value} if field in registers and value != registers[field] else {}

    return Register(name, bits, type, get, put, group)


def _stack_register(n: int) -> Register:
    def get(registers: dict[str, int]) -> int:
        return registers[f"st_physical{registers['ftop'] + n & 7}"]

    def put(registers: dict[str, int], value: int) -> dict[str, int]:
        return {f"st_physical{registers['ftop'] + n & 7}": value & (1 << 80) - 1}

    return Register(f"st{n}", 80, "i387_ext", get, put)


def _tag_word(registers: dict[str, int]) -> int:
    """The full tag word (SDM 1 8.1.7), made from the values: 0 valid, 1 zero, 2 special, 3 empty."""
    word = 0
    for n in range(8):
        value = registers[f"st_physical{n}"]
        exponent, significand = value >> 64 & 0x7FFF, value & (1 << 64) - 1
        if not registers["ftag"] >> n & 1:
            tag = 3
        elif not exponent and not significand:
            tag = 1
        else:
            tag = 2 if exponent in (0, 0x7FFF) or not significand >> 63 else 0
        word |= tag << 2 * n
    return word


def _set_tag_word(registers: dict[str, int], value: int) -> dict[str, int]:
    return {"ftag": sum((value >> 2 * n & 3 != 3) << n for n in range(8))}


def _fpu_control() -> list[Register]:
    def status(registers: dict[str, int]) -> int:
        return registers["fsw"] & ~0x3800 | registers["ftop"] << 11

    special: dict[str, tuple[Callable[[dict[str, int]], int], Callable[[dict[str, int], int], dict[str, int]]]] = {
        "fctrl": (lambda r: r["fcw"], lambda r, v: {"fcw": v & 0x1F7F | 0x40}),
        "fstat": (status, lambda r, v: {"fsw": v & 0xC7FF, "ftop": v >> 11 & 7}),
        "ftag": (_tag_word, _set_tag_word),
        "fiseg": (lambda r: 0, lambda r, v: {}),
        "fioff": (lambda r: r["fip"] & 0xFFFF_FFFF, lambda r, v: {"fip": v & 0xFFFF_FFFF}),
        "foseg": (lambda r: 0, lambda r, v: {}),
        "fooff": (lambda r: r["fdp"] & 0xFFFF_FFFF, lambda r, v: {"fdp": v & 0xFFFF_FFFF}),
        "fop": (lambda r: r["fop"], lambda r, v: {"fop": v & 0x7FF}),
    }
    return [Register(name, 32, "int", *special[name], "float") for name in _FPU_CONTROL]


def _system(word: int) -> list[Register]:
    control = [_plain(name, word, "int64" if word == 64 else "int32", group="system") for name in ("cr0", "cr2", "cr3", "cr4", "cr8")]
    control += [_plain("efer", 64, "int64", group="system")]
    control += [_plain(f"dr{n}", word, "int64" if word == 64 else "int32", group="system") for n in (0, 1, 2, 3, 6, 7)]
    for table in ("gdtr", "idtr"):
        control += [_plain(f"{table}_base", word, "data_ptr", group="system"), _plain(f"{table}_limit", 32, "int32", group="system")]
    for name in ("ldtr", "tr"):
        control.append(_read_only(name, 32, "int32"))
        control += [_read_only(f"{name}_base", word, "data_ptr"), _read_only(f"{name}_limit", 32, "int32")]
    control += [_read_only(f"{name}_base", word, "data_ptr") for name in ("cs", "ss", "ds", "es")]
    return control


def _read_only(name: str, bits: int, type: str) -> Register:
    return Register(name, bits, type, lambda r: r.get(name, 0) & (1 << bits) - 1, lambda r, v: {}, "system")


def _mxcsr() -> Register:
    return Register("mxcsr", 32, "i386_mxcsr", lambda r: r["mxcsr"], lambda r, v: {"mxcsr": v & 0xFFFF}, "vector")


def _core(long: bool) -> list[Register]:
    word = 64 if long else 32
    integer = "int64" if long else "int32"
    if long:
        names = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16))]
    else:
        names = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"]
    upper = 0 if long else 0xFFFF_FFFF << 32
    registers = [_plain(n if long else f"e{n[1:]}", word, "data_ptr" if n in ("rsp", "rbp") else integer, n, keep=upper) for n in names]
    registers.append(Register("rip" if long else "eip", word, "code_ptr", lambda r: linear_pc(r) & (1 << word) - 1, _set_pc))
    registers.append(Register("eflags", 32, "i386_eflags", lambda r: r["rflags"], lambda r, v: {"rflags": v & 0x3F7FD5 | 2}))
    registers += [Register(n, 32, "int32", lambda r, n=n: r[n], _set_segment(n)) for n in _SEGMENTS]  # type: ignore[misc]
    return registers + [_stack_register(n) for n in range(8)] + _fpu_control()


def _flag_types() -> tuple[str, str]:
    fields = "".join(f'<field name="{name}" start="{low}" end="{high}"/>' for name, low, high in reversed(_FLAGS))
    mxcsr = "".join(f'<field name="{name}" start="{n}" end="{n}"/>' for n, name in enumerate(_MXCSR))
    return f'<flags id="i386_eflags" size="4">{fields}</flags>', f'<flags id="i386_mxcsr" size="4">{mxcsr}</flags>'


def _feature(name: str, registers: list[Register], types: str = "") -> str:
    rows = "".join(
        f'<reg name="{r.name}" bitsize="{r.bits}" type="{r.type}"' + (f' group="{r.group}"' if r.group else "") + "/>\n" for r in registers
    )
    return f'<feature name="{name}">\n{types}{rows}</feature>\n'


def _architecture(name: str) -> Architecture:
    long = name == "i386:x86-64"
    eflags, mxcsr = _flag_types()
    word = 64 if long else 32
    bases = [_plain(f"{name}_base", word, "int64" if long else "int32") for name in ("fs", "gs")]
    features = [
        ("org.gnu.gdb.i386.core", _core(long), eflags),
        ("org.gnu.gdb.i386.sse", [_plain(f"xmm{n}", 128, "vec128") for n in range(16 if long else 8)] + [_mxcsr()], _VEC128 + mxcsr),
        ("org.gnu.gdb.i386.segments" if long else "org.ringfence.segments", bases, ""),
        ("org.ringfence.system", _system(word), ""),
    ]
    body = "".join(_feature(feature, registers, types) for feature, registers, types in features)
    head = '<?xml version="1.0"?>\n<!DOCTYPE target SYSTEM "gdb-target.dtd">\n'
    xml = f"{head}<target>\n<architecture>{name}</architecture>\n{body}</target>\n"
    return Architecture(name, tuple(r for _, registers, _ in features for r in registers), xml.encode())


AMD64, I386, I8086 = _architecture("i386:x86-64"), _architecture("i386"), _architecture("i8086")


def architecture_of(registers: dict[str, int], has_long_mode: bool) -> Architecture:
    """i386 for CPUs without long mode and for what runs with paging in 32-bit mode; i8086, the same registers with 16-bit code,
    for such CPUs in real mode.  gdb cannot change it later."""
    if not has_long_mode:
        return I386 if registers["cr0"] & _PE else I8086
    paging = bool(registers["cr0"] >> 31)
    return I386 if paging and not registers["efer"] >> 10 & 1 else AMD64
