"""LLVM text to placed machine code: compile to an ELF object, take functions and relocations out, patch by symbol.

No system linker is needed: an object for an ELF triple is parsed with pyelftools on any host.
"""

from __future__ import annotations

import io
import struct
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from ringfence.core.late import LateModule
from ringfence.translate.host_cpu import host_features

if TYPE_CHECKING:
    import llvmlite.binding as llvm
    from elftools.elf import elffile
else:  # normally the cache holds everything that is needed
    llvm = LateModule("llvmlite.binding")
    elffile = LateModule("elftools.elf.elffile")

# x86-64 psABI relocation types.
R_64, R_PC32, R_PLT32, R_32, R_32S, R_16, R_8 = 1, 2, 4, 10, 11, 12, 14
RELATIVE = (R_PC32, R_PLT32)


class Hole(NamedTuple):
    """A place in a function's code to be patched.  `symbol` is a name, or (constant bytes, offset) for literals."""

    offset: int
    type: int
    symbol: Any
    addend: int


class Code(NamedTuple):
    """A compiled function: position-independent but for its holes."""

    code: bytes
    holes: tuple[Hole, ...]


def _initialize() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        llvm.initialize_native_asmparser()
    return llvm.Target.from_default_triple()


_target: Any = None


def target_machine() -> Any:
    global _target
    if _target is None:
        _target = _initialize()
    return _target.create_target_machine(cpu="x86-64-v2", features=host_features(), opt=2, reloc="static", codemodel="small")


def compile_object(text: str, optimise: str = "short") -> bytes:
    """An ELF object of LLVM text.  `short` runs only the passes that leave holes alone; `full` is O2."""
    machine = target_machine()
    module = llvm.parse_assembly(text)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2 if optimise == "full" else 1)
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
    builder = llvm.create_pass_builder(machine, options)
    if optimise == "full":
        passes = builder.getModulePassManager()
    else:
        passes = llvm.create_new_module_pass_manager()
        passes.add_sroa_pass()
        passes.add_instruction_combine_pass()
        passes.add_simplify_cfg_pass()
    passes.run(module, builder)
    return bytes(machine.emit_object(module))


def read_object(data: bytes) -> dict[str, Code]:
    """The functions of an object by name."""
    elf = elffile.ELFFile(io.BytesIO(data))
    symbols: Any = elf.get_section_by_name(".symtab")
    sections = list(elf.iter_sections())
    text_index = next(k for k, s in enumerate(sections) if s.name == ".text")
    text = sections[text_index].data()
    relocations: Any = elf.get_section_by_name(".rela.text")
    holes: list[Hole] = []
    for r in relocations.iter_relocations() if relocations else ():
        symbol = symbols.get_symbol(r["r_info_sym"])
        name: Any = symbol.name
        section = symbol["st_shndx"]
        if isinstance(section, int) and section != text_index:
            name = (sections[section].data(), symbol["st_value"])
        elif not name:
            name = ("", symbol["st_value"])  # a place in .text itself
        holes.append(Hole(r["r_offset"], r["r_info_type"], name, r["r_addend"]))
    holes.sort()
    functions: dict[str, Code] = {}
    starts = sorted(
        (s["st_value"], s["st_size"], s.name)
        for s in symbols.iter_symbols()
        if s["st_shndx"] == text_index and s.name and s["st_info"]["type"] == "STT_FUNC"
    )
    position = 0
    for start, size, name in starts:
        while position < len(holes) and holes[position].offset < start:
            position += 1
        own = []
        while position < len(holes) and holes[position].offset < start + size:
            own.append(holes[position]._replace(offset=holes[position].offset - start))
            position += 1
        functions[name] = Code(text[start : start + size], tuple(own))
    return functions


def patch(buffer: bytearray | memoryview, offset: int, type: int, value: int) -> None:
    """Writes a relocated value (already without the place for relative types)."""
    if type in (R_32, R_32S, R_PC32, R_PLT32):
        struct.pack_into("<I", buffer, offset, value & 0xFFFFFFFF)
    elif type == R_64:
        struct.pack_into("<Q", buffer, offset, value & 0xFFFFFFFFFFFFFFFF)
    elif type == R_8:
        buffer[offset] = value & 0xFF
    elif type == R_16:
        struct.pack_into("<H", buffer, offset, value & 0xFFFF)
    else:
        raise ValueError(f"relocation type {type} is not supported")


# A whole object as plain data: bytes (code, constants behind it), symbols with their offsets, and relocations: where, type,
# external symbol (empty: the object itself), addend.
Linkable = tuple[bytes, tuple[tuple[str, int], ...], tuple[tuple[int, int, str, int], ...]]


def read_linkable(data: bytes) -> Linkable:
    """An ELF object as plain data."""
    elf = elffile.ELFFile(io.BytesIO(data))
    table: Any = elf.get_section_by_name(".symtab")
    sections = list(elf.iter_sections())
    image = bytearray()
    offsets: dict[int, int] = {}
    order = [k for k, s in enumerate(sections) if s.name == ".text"] + [k for k, s in enumerate(sections) if s.name.startswith(".rodata")]
    for k in order:
        image += bytes(-len(image) % 64)
        offsets[k] = len(image)
        image += sections[k].data()
    found: list[tuple[int, int, str, int]] = []
    for k in order:
        relocations: Any = elf.get_section_by_name(".rela" + sections[k].name)
        for r in relocations.iter_relocations() if relocations else ():
            symbol = table.get_symbol(r["r_info_sym"])
            inside = isinstance(symbol["st_shndx"], int)
            own = offsets[symbol["st_shndx"]] + int(symbol["st_value"]) if inside else 0
            found.append((offsets[k] + r["r_offset"], r["r_info_type"], "" if inside else symbol.name, own + r["r_addend"]))
    named = [s for s in table.iter_symbols() if s.name and s["st_shndx"] in offsets]
    symbols = tuple((s.name, offsets[s["st_shndx"]] + int(s["st_value"])) for s in named)
    return bytes(image), symbols, tuple(found)


def place(linkable: Linkable, base: int, externals: dict[str, int]) -> tuple[bytes, dict[str, int]]:
    """Links a whole object for address `base`; returns its bytes and its symbols as offsets in them.

    `externals` gives the addresses of symbols defined elsewhere; an unknown symbol is a build error.
    """
    code, symbols, relocations = linkable
    image = bytearray(code)
    for where, type, external, value in relocations:
        if external and external not in externals:
            raise ValueError(f"{external} is not defined")
        value += externals[external] if external else base
        patch(image, where, type, value - base - where if type in RELATIVE else value)
    return bytes(image), dict(symbols)
