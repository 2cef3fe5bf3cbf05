"""The engines that can be asked for by name, whether they work on this host, and the choice that `auto` makes."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from ringfence.core.clock import Clock
from ringfence.core.errors import UserError
from ringfence.core.record import Record
from ringfence.engine import cpuid, switches, tsc
from ringfence.engine.api import AddressSpace, Engine, InterruptController, MsrHandler
from ringfence.memory.guest_memory import GuestMemory


class EngineParts(Record):
    """What every engine is built from."""

    memory: GuestMemory
    ports: AddressSpace
    mmio: AddressSpace
    interrupts: InterruptController
    msrs: MsrHandler
    clock: Clock
    on_progress: Callable[[str, int, int], None] | None = None
    cpu: str = cpuid.MODEL


class EngineChoice(Record):
    """One engine: `reason` tells why it does not work here and is empty when it does."""

    name: str
    what: str
    reason: str
    build: Callable[[EngineParts], Engine]
    tsc_hz: Callable[[], int]
    tsc_reader: Callable[[], Callable[[], int]]
    build_several: Callable[[threading.RLock, Sequence[EngineParts]], list[Engine]] | None = None
    """The engines of several vCPUs, whose threads hold the lock except while their vCPU executes."""


def _module() -> ModuleType:
    # Loaded late: `doctor` has to tell when a part of it is missing or broken.
    return importlib.import_module("ringfence.engine.emulate")


def _arguments(parts: EngineParts) -> tuple[tuple[Any, ...], dict[str, Any]]:
    options = {"model": cpuid.MODELS[parts.cpu], "without": switches.from_environment()}
    options["keep_translations"] = switches.keep_translations()
    return (parts.memory, parts.ports, parts.mmio, parts.interrupts, parts.msrs, parts.clock, parts.on_progress), options


def _build_emulate(parts: EngineParts) -> Engine:
    build: Callable[..., Engine] = _module().EmulateEngine
    arguments, options = _arguments(parts)
    return build(*arguments, **options)


def _build_several(lock: threading.RLock, parts: Sequence[EngineParts]) -> list[Engine]:
    build: Callable[..., list[Engine]] = importlib.import_module("ringfence.engine.smp").build
    return build(lock, [_arguments(each) for each in parts])


def _emulate_reason(thorough: bool) -> str:
    if os.uname().machine != "x86_64":
        return f"translated code is made for x86-64 hosts, this one is {os.uname().machine}"
    if not hasattr(os, "memfd_create"):
        return "the host has no memfd_create (Linux 3.17 or newer is needed)"
    try:
        engine = _module()
        if thorough:
            engine.check()
    except (ImportError, OSError) as error:
        return f"a part of it cannot be loaded: {error}"
    return ""


def engines(thorough: bool = False) -> list[EngineChoice]:
    """All engines of this version, the one that `auto` prefers first.  `thorough`: what a start does without is looked at too."""
    return [
        EngineChoice(
            "emulate",
            "translates every guest instruction",
            _emulate_reason(thorough),
            _build_emulate,
            tsc.hz,
            lambda: tsc.read,
            _build_several,
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
