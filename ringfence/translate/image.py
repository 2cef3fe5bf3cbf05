"""The native run time as one placed image: stubs, run-time functions and delivery, linked into a code region."""

from __future__ import annotations

import ctypes
import mmap
import os

import ringfence.translate.native_translate  # noqa: F401  (fills the registry of native functions, with runtime.py)
from ringfence.isa.x86.context import Form
from ringfence.translate import native, stubs
from ringfence.translate.code_memory import CodeMemory
from ringfence.translate.objects import Linkable, compile_object, place, read_linkable
from ringfence.translate.stencils import Progress, StencilStore, runtime_digest

_DELIVER = Form("(deliver)", 64, ())


def runtime_object(store: StencilStore) -> Linkable:
    """The stubs and run-time functions, from the cache or compiled."""
    name = f"run time {runtime_digest()}"
    if name not in store.natives:
        text = stubs.module_asm() + "\n" + native.module({"n_deliver": 2})
        store.put_native(name, read_linkable(compile_object(text, "full")))
    return store.natives[name]


def place_runtime(memory: CodeMemory, store: StencilStore) -> dict[str, int]:
    """Links the run time into the code region; returns its symbols as offsets in the region."""
    data = runtime_object(store)
    base = memory.fixed
    # Delivery calls the run time and is called by it: its place behind the run time is fixed first.
    trial, _ = place(data, base, {"n_deliver": base})
    deliver_at = base + len(trial) + 63 & -64
    image, symbols = place(data, base, {"n_deliver": deliver_at})
    symbols = {name: base + offset for name, offset in symbols.items()}
    memory.append_fixed(image, 1)
    body, inside = place(store.native(_DELIVER), deliver_at, symbols)
    memory.fixed = deliver_at
    memory.append_fixed(body, 1)
    assert inside["f"] == 0
    return symbols


def prepare(store: StencilStore, progress: Progress | None = None) -> None:
    """Compiles what every machine needs, so that later starts find it in the cache."""
    if progress:
        progress("compiling the run time", 0, 1)
    runtime_object(store)
    store.native(_DELIVER)
    store.save()


_RDTSC = bytes.fromhex("0f3148c1e2204809d0c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret


def host_tsc_reader() -> ctypes._CFuncPtr:  # type: ignore[name-defined]
    """A function that reads the host's time-stamp counter."""
    from ringfence.translate.code_memory import _libc

    fd = os.memfd_create("ringfence-rdtsc", os.MFD_CLOEXEC)
    os.write(fd, _RDTSC)
    address = _libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_SHARED, fd, 0)
    os.close(fd)
    return ctypes.CFUNCTYPE(ctypes.c_uint64)(address)
