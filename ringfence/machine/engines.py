"""The engines that can be asked for by name, whether they work on this host, and the choice that `auto` makes."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from ringfence.core.clock import Clock
from ringfence.core.errors import UserError
from ringfence.engine.api import AddressSpace, Engine, InterruptController, MsrHandler
from ringfence.memory.guest_memory import GuestMemory


@dataclass(frozen=True)
class EngineParts:
    """What every engine is built from."""

    memory: GuestMemory
    ports: AddressSpace
    mmio: AddressSpace
    interrupts: InterruptController
    msrs: MsrHandler
    clock: Clock
    on_progress: Callable[[str, int, int], None] | None = None


@dataclass(frozen=True)
class EngineChoice:
    """One engine: `reason` tells why it does not work here and is empty when it does."""

    name: str
    what: str
    reason: str
    build: Callable[[EngineParts], Engine]
    tsc_hz: Callable[[], int]
    tsc_reader: Callable[[], Callable[[], int]]


def _module() -> ModuleType:
    # Loaded late: it brings LLVM with it, and `doctor` has to tell when that is missing or broken.
    return importlib.import_module("ringfence.engine.emulate")


def _build_emulate(parts: EngineParts) -> Engine:
    build: Callable[..., Engine] = _module().EmulateEngine
    return build(parts.memory, parts.ports, parts.mmio, parts.interrupts, parts.msrs, parts.clock, parts.on_progress)


def _emulate_tsc_hz() -> int:
    return int(_module().guest_tsc_hz())


def _emulate_read_tsc() -> Callable[[], int]:
    read: Callable[[], int] = _module().read_guest_tsc
    return read


def _emulate_reason() -> str:
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"translated code is made for x86-64 hosts, this one is {platform.machine()}"
    if not hasattr(os, "memfd_create"):
        return "the host has no memfd_create (Linux 3.17 or newer is needed)"
    try:
        _module()
    except (ImportError, OSError) as error:
        return f"a part of it cannot be loaded: {error}"
    return ""


def engines() -> list[EngineChoice]:
    """All engines of this version, the one that `auto` prefers first."""
    return [
        EngineChoice(
            "emulate", "translates every guest instruction", _emulate_reason(), _build_emulate, _emulate_tsc_hz, _emulate_read_tsc
        ),
    ]


def choose_engine(name: str) -> EngineChoice:
    """The engine of that name, or the first that works for `auto`; raises UserError with the reason."""
    candidates = [e for e in engines() if name in ("auto", e.name)]
    if not candidates:
        raise UserError(f"There is no engine {name!r}.", f"Use one of: auto, {', '.join(e.name for e in engines())}.")
    for candidate in candidates:
        if not candidate.reason:
            return candidate
    reasons = "; ".join(f"{e.name}: {e.reason}" for e in candidates)
    raise UserError(f"No engine can run a machine here ({reasons}).", "See `ringfence doctor`.")


def kvm_report() -> str:
    """What this host offers for hardware virtualisation.  Told by `doctor`; no engine of this version uses it."""
    device = "/dev/kvm"
    if not os.path.exists(device):
        return f"there is no {device} on this host"
    if not os.access(device, os.R_OK | os.W_OK):
        return f"{device} exists, but this user may not open it"
    return f"{device} exists and may be opened"
