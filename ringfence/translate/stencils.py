"""The stencils of this host: made by LLVM on first need, kept in the user's cache.

A stencil is named by a `Key`: the instruction form, which of its slots live in which pinned registers, the kind of the
flags at entry and whether its own flags are read.  The cache file belongs to one version of the bodies and the compiler
and one set of host features.
"""

from __future__ import annotations

import ast
import marshal
import os
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from ringfence.core.late import LateModule
from ringfence.core.trace import tracer
from ringfence.isa.x86.context import Form, MemForm
from ringfence.translate.objects import Code, Hole, Linkable
from ringfence.translate.record_file import Records
from ringfence.translate.sources import FORMS, RECIPES, cache_path

if TYPE_CHECKING:
    from ringfence.translate import compiling
else:  # normally the cache holds everything that is needed
    compiling = LateModule("ringfence.translate.compiling")

trace = tracer("stencils")

BATCH = 64
SAVE_EVERY = 1000  # forms compiled on the way, so that an interrupted first run is not lost
# A guest that executes random bytes asks for new forms without end: memory may not fill with them.
MAX_UNPACKED = 60_000
_NATIVE = b"\0"  # before the names of native functions; other names are texts of keys
Progress = Callable[[str, int, int], None]


class Key(NamedTuple):
    """What one stencil was compiled for."""

    form: Form
    pins: tuple[tuple[Any, str], ...] = ()
    kind_in: int = 0
    carry_live: bool = True
    flags_live: bool = True


def form_of(plain: tuple[Any, ...]) -> Form:
    """The form that a cache has as the tuples that it is."""
    name, size, operands, mem, *rest = plain
    return Form(name, size, operands, MemForm(*mem), *rest)


def key_text(key: Key) -> str:
    """A stable name; `key_of` reads it back."""
    form = key.form
    return repr(((form.name, form.size, form.operands, tuple(form.mem), form.imms, form.lock, form.mode), *key[1:]))


def key_of(text: str) -> Key:
    """The key that `key_text` wrote."""
    head, *rest = ast.literal_eval(text)
    return Key(form_of(head), *rest)


def host_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


class StencilStore:
    """Stencils and native bodies by key, and recipes by name; compiles what is missing and writes it back on `save`."""

    def __init__(self) -> None:
        self.codes: dict[str, Code] = {}
        self.natives: dict[str, Linkable] = {}
        self.recipes_changed = False
        self.compiled_forms = 0
        self.compile_ns = 0
        self._dirty = False
        self._forms = Records(cache_path("forms", FORMS))
        self.recipes = Records(cache_path("recipes", RECIPES))

    @property
    def complete(self) -> bool:
        """Whether the shipped list of forms has been built."""
        return self._forms.complete

    @complete.setter
    def complete(self, value: bool) -> None:
        self._forms.complete = value

    @property
    def built(self) -> bool:
        """Whether nothing of the shipped lists is missing."""
        return self.complete and self.recipes.complete

    def add(self, compiled: Iterable[tuple[str, Code]]) -> None:
        """Takes over stencils compiled elsewhere, by the text of their keys."""
        for text, code in compiled:
            self._put(text, code)
            self.compiled_forms += 1

    def _put(self, text: str, code: Code) -> None:
        self.codes[text] = code
        self._forms.added[text.encode()] = marshal.dumps((code.code, tuple(map(tuple, code.holes))))
        self._dirty = True

    def save(self, force: bool = False) -> None:
        """Writes the cache file if anything was compiled; a folder that cannot be written is not an error."""
        if (self._dirty or force) and self._forms.save():
            self._dirty = False

    def save_recipes(self) -> None:
        """Writes the recipes if templates were added."""
        if self.recipes_changed and self.recipes.save():
            self.recipes_changed = False

    def __contains__(self, text: str) -> bool:
        return text in self.codes or text.encode() in self._forms

    def find(self, text: str) -> Code | None:
        code = self.codes.get(text)
        if code is None and (plain := self._forms.get(text.encode())) is not None:
            data, holes = marshal.loads(plain)
            code = self.codes[text] = Code(data, tuple(Hole(*h) for h in holes))
        return code

    def names(self) -> set[str]:
        """The texts of all keys of stencils."""
        return {name.decode() for name, _ in self._forms.items() if not name.startswith(_NATIVE)}

    def get(self, key: Key) -> Code:
        text = key_text(key)
        code = self.find(text)
        if code is None:
            self.compile([key])
            code = self.codes[text]
            if self.compiled_forms % SAVE_EVERY == 0:
                self.save()
        return code

    def compile(self, keys: list[Key], progress: Progress | None = None) -> None:
        """Compiles those of `keys` that are missing, in batches."""
        if len(self.codes) > MAX_UNPACKED:
            self.save()
            self.codes.clear()
            self._forms.added.clear()
        missing = list({key_text(k): k for k in keys if key_text(k) not in self}.items())
        start = time.perf_counter_ns()
        for first in range(0, len(missing), BATCH):
            batch = missing[first : first + BATCH]
            for (text, _), code in zip(batch, compiling.compile_keys(key for _, key in batch), strict=True):
                self._put(text, code)
            self.compiled_forms += len(batch)
            if progress:
                progress("compiling instruction stencils", first + len(batch), len(missing))
        self.compile_ns += time.perf_counter_ns() - start

    def put_native(self, name: str, data: Linkable) -> None:
        self.natives[name] = data
        self._forms.added[_NATIVE + name.encode()] = marshal.dumps(data)
        self._dirty = True

    def find_native(self, name: str) -> Linkable | None:
        """The native function, or other object, that was put under this name."""
        data = self.natives.get(name)
        if data is None and (plain := self._forms.get(_NATIVE + name.encode())) is not None:
            data = self.natives[name] = marshal.loads(plain)
        return data

    def native_forms(self) -> list[Form]:
        """The forms whose native functions are there."""
        names = (name.removeprefix(_NATIVE).decode() for name, _ in self._forms.items() if name.startswith(_NATIVE))
        return [key_of(name).form for name in sorted(names) if name.startswith("(")]

    def native(self, form: Form) -> Linkable:
        text = key_text(Key(form))
        data = self.find_native(text)
        if data is None:
            start = time.perf_counter_ns()
            data = compiling.compile_native(form)
            self.put_native(text, data)
            self.compiled_forms += 1
            self.compile_ns += time.perf_counter_ns() - start
        return data
