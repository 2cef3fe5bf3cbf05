"""Compiles the run time and links it, with delivery and the native bodies of instructions, to an image (image.py)."""

from __future__ import annotations

# These four, and what they import, fill the registry of native functions.
import ringfence.translate.native_guarded
import ringfence.translate.native_strings
import ringfence.translate.native_translate
import ringfence.translate.runtime  # noqa: F401
from ringfence.isa.x86.context import Form
from ringfence.translate import native_compiler, stubs
from ringfence.translate.image import Image
from ringfence.translate.objects import Linkable, compile_object, place, read_linkable
from ringfence.translate.sources import RUNTIME, sources_digest
from ringfence.translate.stencils import Progress, StencilStore

_DELIVERIES = {
    "n_deliver": Form("(deliver)", 64, ()),
    "n_deliver_protected": Form("(deliver protected)", 64, (), mode=33),
    "n_deliver_real": Form("(deliver real)", 64, (), mode=18),
    "n_call_gate": Form("(call gate)", 64, (), mode=33),
    "n_redirect": Form("(redirect)", 64, (), mode=18),
}


_RUN_TIME = ("rt_load", "rt_window", "rt_store", "rt_pload", "rt_pstore")  # what bodies call


def runtime_object(store: StencilStore) -> Linkable:
    """The stubs and run-time functions, from the cache or compiled."""
    name = f"run time {sources_digest(RUNTIME)}"
    data = store.find_native(name)
    if data is None:
        text = stubs.module_asm() + "\n" + native_compiler.module({**dict.fromkeys(_DELIVERIES, 2), "s_outside": 4, "s_enter": 1})
        data = read_linkable(compile_object(text, "full"))
        store.put_native(name, data)
    return data


def link(store: StencilStore, base: int) -> Image:
    """Links the run time, and the native bodies that the store has, for this place in the code region."""
    data = runtime_object(store)
    # Delivery calls the run time and is called by it: its places behind the run time are fixed first.
    trial, _ = place(data, base, dict.fromkeys(_DELIVERIES, base))
    places, at = {}, base + len(trial)
    for name, form in _DELIVERIES.items():
        places[name] = at = _aligned(at)
        at += len(place(store.native(form), at, dict.fromkeys(_RUN_TIME, base))[0])
    code, symbols = place(data, base, places)
    symbols = {name: base + offset for name, offset in symbols.items()}
    image = bytearray(code)

    def append(linkable: Linkable) -> int:
        image.extend(bytes(_aligned(base + len(image)) - base - len(image)))
        at = base + len(image)
        body, inside = place(linkable, at, symbols)
        image.extend(body)
        return at + inside["f"]

    for name, form in _DELIVERIES.items():
        at = append(store.native(form))
        assert at == places[name]
    natives = {form: append(store.native(form)) for form in store.native_forms() if form not in _DELIVERIES.values()}
    return Image(base, bytes(image), symbols, natives)


def _aligned(at: int) -> int:
    return at + 63 & -64


def prepare(store: StencilStore, progress: Progress | None = None) -> None:
    """Compiles what every machine needs, so that later starts find it in the cache."""
    if progress:
        progress("compiling the run time", 0, 1)
    runtime_object(store)
    for form in _DELIVERIES.values():
        store.native(form)
    store.save()
