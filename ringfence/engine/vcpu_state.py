"""The vCPU's registers as Python sees them: a mapping over the state block that translated code works on."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

from ringfence.isa.x86.hidden import hidden_words
from ringfence.isa.x86.models import CpuModel
from ringfence.isa.x86.modes import ODD_REGIME, REGIMES, odd_mode
from ringfence.isa.x86.state import GPR, IOPL, NT, SEGMENTS, VM, EngineState, X86State, rflags_image, rflags_words
from ringfence.translate.code_memory import CodeMemory
from ringfence.translate.layout import FIELDS, FRONT_BYTES, stride

_DECLARED = {**X86State.FIELDS, **EngineState.FIELDS}
_WIDTHS = {"kick": "I", "flags_kind": "B"}
_PLAIN = (
    *GPR,
    "rip",
    *(s + suffix for s in SEGMENTS for suffix in ("", "_base", "_limit", "_attr")),
    *[
        "gdtr_base",
        "gdtr_limit",
        "idtr_base",
        "idtr_limit",
        "cr0",
        "cr2",
        "cr3",
        "cr4",
        "dr0",
        "dr1",
        "dr2",
        "dr3",
        "dr6",
        "dr7",
        "efer",
        "star",
        "lstar",
        "cstar",
        "fmask",
        "kernel_gs_base",
    ],
    *[
        "sysenter_cs",
        "sysenter_esp",
        "sysenter_eip",
        "pat",
        "tsc_offset",
        "tsc_aux",
        "fcw",
        "fsw",
        "ftop",
        "ftag",
        "fop",
        "fip",
        "fdp",
        "mxcsr",
        "cpl",
        "halted",
    ],
    *(f"xmm{n}" for n in range(16)),
)


class _Indexed:
    """The elements of one indexed field."""

    def __init__(self, memory: CodeMemory, offset: int, step: int, size: int) -> None:
        self._memory, self._offset, self._step, self._size = memory.state, offset, step, size

    def __getitem__(self, k: int) -> int:
        at = self._offset + k * self._step
        return int.from_bytes(self._memory[at : at + self._size], "little")

    def __setitem__(self, k: int, value: int) -> None:
        at = self._offset + k * self._step
        self._memory[at : at + self._size] = value.to_bytes(self._size, "little")


class VcpuState(Mapping[str, Any]):
    """Fields by name, read and written in place.  Flag words mean something only after they were settled."""

    def __init__(self, memory: CodeMemory) -> None:
        self._state = memory.state
        self._places: dict[str, struct.Struct | int] = {}
        self._offsets = {name: FRONT_BYTES + offset for name, offset in FIELDS.items()}
        self._indexed: dict[str, _Indexed] = {}
        for name, field in _DECLARED.items():
            if field.count is not None:
                self._indexed[name] = _Indexed(memory, self._offsets[name], stride(name), (field.bits + 7) // 8)
            elif field.bits > 64:
                self._places[name] = (field.bits + 7) // 8
            else:
                self._places[name] = struct.Struct("<" + _WIDTHS.get(name, "Q"))

    def __getitem__(self, name: str) -> Any:
        place = self._places.get(name)
        if place is None:
            return self._indexed[name]
        at = self._offsets[name]
        if isinstance(place, int):
            return int.from_bytes(self._state[at : at + place], "little")
        return place.unpack_from(self._state, at)[0]

    def __setitem__(self, name: str, value: int) -> None:
        place, at = self._places[name], self._offsets[name]
        if isinstance(place, int):
            self._state[at : at + place] = value.to_bytes(place, "little")
        else:
            place.pack_into(self._state, at, value)

    def __iter__(self) -> Iterator[str]:
        return iter(_DECLARED)

    def __len__(self) -> int:
        return len(_DECLARED)

    def complete_in(self, size: int, value: int) -> None:
        """Puts what IN read into AL, AX or EAX."""
        self["rax"] = value & 0xFFFFFFFF if size == 4 else self["rax"] & ~((1 << 8 * size) - 1) | value

    def reset(self) -> None:
        """Power-on values of every architectural field."""
        for name, field in X86State.FIELDS.items():
            for k in range(field.count or 0):
                self._indexed[name][k] = field.reset
            if field.count is None:
                self[name] = field.reset
        self.derive_segments()

    def become(self, model: CpuModel) -> None:
        """Limits the registers to what the model has, and gives them its values of power-on.  After `reset`."""
        real = IOPL | NT if model.generation == 286 else 0
        self["flags_settable"] = model.flags_settable
        self["flags_settable_real"] = model.flags_settable & ~real
        self["flags_fixed"] = model.flags_fixed & ~2
        self["cr0_settable"], self["cr0_fixed"] = model.cr0_settable, model.cr0_fixed
        self["cr4_settable"] = model.cr4_settable
        self.write_registers(model.power_on())

    # ---- modes
    def is_long(self) -> bool:
        """64-bit mode."""
        return bool(self["efer"] >> 10 & 1 and self["cs_attr"] >> 9 & 1)

    def is_real(self) -> bool:
        """Real-address or virtual-8086 mode."""
        return not self["cr0"] & 1 or bool(self["rflags_sys"] & VM)

    def form_mode(self, regime: int) -> int:
        """The mode (isa/x86/modes.py) that instructions are decoded in, of the regime that the run time computed."""
        if regime != ODD_REGIME:
            return REGIMES[regime]
        return odd_mode(32 if self["cs_attr"] >> 10 & 1 else 16, 32 if self["ss_attr"] >> 10 & 1 else 16)

    def derive_segments(self) -> None:
        """Brings what follows from the segments' hidden parts in line with them and with the mode."""
        real = not self["cr0"] & 1
        for name in SEGMENTS[:6]:
            words = hidden_words(name, self[f"{name}_base"], self[f"{name}_limit"], self[f"{name}_attr"], real)
            for suffix, word in zip(("_rlimit", "_wlimit", "_unflat"), words, strict=True):
                self[name + suffix] = word

    def eip(self) -> int:
        """RIP, or EIP outside of 64-bit mode."""
        rip = int(self["rip"])
        return rip if self.is_long() else rip - self["cs_base"] & 0xFFFFFFFF

    def registers(self) -> dict[str, int]:
        """Architectural registers by their manual names (`rip` is an offset within CS); the flags must be settled."""
        values = {name: int(self[name]) for name in _PLAIN}
        values["rip"] = self.eip()
        values["rflags"] = rflags_image(self)  # type: ignore[arg-type]
        for k in range(8):
            values[f"st_physical{k}"] = self._indexed["st"][k]
        return values

    def write_registers(self, values: dict[str, int]) -> None:
        """The opposite for the registers that are named; raises KeyError for a name that is no register."""
        eip = values.get("rip", self.eip())
        for name, value in values.items():
            if name == "rflags":
                for field, word in rflags_words(value).items():
                    self[field] = word
                self["rflags_sys"] |= self["flags_fixed"]
            elif name.startswith("st_physical"):
                self._indexed["st"][int(name[11:])] = value
            else:
                self[name] = value
        if "cs" in values and "cpl" not in values:
            self["cpl"] = 0 if not self["cr0"] & 1 else 3 if self["rflags_sys"] & VM else values["cs"] & 3
        self["rip"] = eip if self.is_long() else self["cs_base"] + eip & 0xFFFFFFFF
        self.derive_segments()
