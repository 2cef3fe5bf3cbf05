"""The stencils of this host: made by LLVM on first need, kept in the user's cache.

A stencil is named by a `Key`: the instruction form, which of its slots live in which pinned registers, the kind of the
flags at entry and whether its own flags are read.  The cache file belongs to one version of the bodies and the compiler
and one set of host features; it is read only if nobody but its owner could have written it.
"""

from __future__ import annotations

import ast
import hashlib
import marshal
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite

import ringfence.isa.x86.bodies  # noqa: F401  (fills INSTRUCTIONS)
from ringfence.core.paths import cache_folder
from ringfence.core.trace import tracer
from ringfence.isa.x86.context import Context, Form, MemForm, trace_form
from ringfence.translate.lower import Lowering, module
from ringfence.translate.objects import Code, Hole, Linkable, compile_object, host_features, read_linkable, read_object

trace = tracer("stencils")

BATCH = 64
KEEP_DAYS = 30
SAVE_EVERY = 1000  # forms compiled on the way, so that an interrupted first run is not lost
# A guest that executes random bytes asks for new forms without end: neither memory nor the user's disk may fill with them.
MAX_UNPACKED = 60_000
MAX_CACHE_BYTES = 64 << 20
Progress = Callable[[str, int, int], None]


class Key(NamedTuple):
    """What one stencil was compiled for."""

    form: Form
    pins: tuple[tuple[Any, str], ...] = ()
    kind_in: int = 0
    carry_live: bool = True
    flags_live: bool = True


def key_text(key: Key) -> str:
    """A stable name; `key_of` reads it back."""
    form = key.form
    return repr(((form.name, form.size, form.operands, tuple(form.mem), form.imms, form.lock, form.mode), *key[1:]))


def key_of(text: str) -> Key:
    """The key that `key_text` wrote."""
    head, *rest = ast.literal_eval(text)
    name, size, operands, mem, imms, lock, mode = head
    return Key(Form(name, size, operands, MemForm(*mem), imms, lock, mode), *rest)


def trace_key(key: Key) -> Context:
    return trace_form(key.form, lazy=True, kind_in=key.kind_in, carry_live=key.carry_live, flags_live=key.flags_live)


def compile_keys(keys: Iterable[Key]) -> list[Code]:
    """Compiles stencils, one LLVM module for all."""
    texts, declarations, holes, names = [], set(), set(), []
    for k, key in enumerate(keys):
        lowering = Lowering(f"s{k}", trace_key(key), "stencil", dict(key.pins))
        texts.append(lowering.function())
        declarations |= lowering.declarations
        holes |= lowering.holes
        names.append(lowering.name)
    compiled = read_object(compile_object(module(texts, declarations, holes, stencil=True)))
    return [compiled[name] for name in names]


def compile_native(form: Form) -> Linkable:
    """A form's native function, whose symbol is `f`."""
    lowering = Lowering("f", trace_form(form), "native", {})
    text = lowering.function()
    return read_linkable(compile_object(module([text], lowering.declarations, lowering.holes, stencil=False)))


def host_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


# What stencils are made from, and what the run time is made from besides.
_STENCIL_SOURCES = ("ir/*.py", "isa/x86/*.py", "translate/lower*.py", "translate/layout.py", "translate/objects.py")
_RECIPE_SOURCES = ("translate/recipes.py",)
_RUNTIME_SOURCES = ("translate/native*.py", "translate/runtime.py", "translate/stubs.py", "translate/code_memory.py")


def sources_digest(*patterns: str) -> str:
    """Changes with any of these source files, the compiler's version and the host's features."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256(f"{host_features()} {llvmlite.__version__}".encode())
    for pattern in patterns:
        for path in sorted(root.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


def runtime_digest() -> str:
    return sources_digest(*_RUNTIME_SOURCES)


def private(path: Path) -> bool:
    """Whether only this user (or root) can have written the file."""
    try:
        info = path.stat()
        folder = path.parent.stat()
    except OSError:
        return False
    return all(s.st_uid in (os.getuid(), 0) and not s.st_mode & 0o022 for s in (info, folder))


def read_cache(path: Path) -> Any:
    """What `write_cache` wrote; None when there is nothing, or nothing to trust."""
    if not path.exists():
        return None
    if not private(path):
        if trace:
            trace("%s can be written by others: ignored", path)
        return None
    data = path.read_bytes()
    try:
        if hashlib.sha256(memoryview(data)[32:]).digest() != data[:32]:
            raise ValueError("checksum")
        return marshal.loads(memoryview(data)[32:])
    except (ValueError, EOFError, TypeError) as error:
        if trace:
            trace("%s is damaged (%s): ignored", path, error)
        return None


def _prune(path: Path) -> None:
    """Removes the same kind of file of versions that nobody has used for a month."""
    oldest = path.stat().st_mtime - KEEP_DAYS * 86400
    for other in path.parent.glob(path.name.split("-")[0] + "-*.bin"):
        if other.stat().st_mtime < oldest:
            other.unlink(missing_ok=True)


def write_cache(path: Path, value: Any) -> bool:
    """Replaces the file at once; False where the folder cannot be written, which is not an error."""
    data = marshal.dumps(value)
    if len(data) > MAX_CACHE_BYTES:
        if trace:
            trace("%s would grow to %d bytes: left as it is", path, len(data))
        return False
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(data).digest() + data)
        os.chmod(file.name, 0o600)
        os.replace(file.name, path)
        _prune(path)
    except OSError as error:
        if trace:
            trace("cache not written: %s", error)
        return False
    return True


class StencilStore:
    """Stencils and native bodies by key; compiles what is missing and writes it back on `save`."""

    def __init__(self) -> None:
        self.codes: dict[str, Code] = {}
        self.natives: dict[str, Linkable] = {}
        self.recipes: dict[bytes, bytes] = {}  # of translate/recipes.py, marshalled one by one: few are looked at in one run
        self.recipes_changed = False
        self.compiled_forms = 0
        self.compile_ns = 0
        self._dirty = False
        self.complete = False  # whether the shipped list has been built
        self.path = cache_folder() / f"forms-{sources_digest(*_STENCIL_SOURCES)}.bin"
        self._plain: dict[str, bytes] = {}  # marshalled one by one
        self.recipes_path = cache_folder() / f"recipes-{sources_digest(*_STENCIL_SOURCES, *_RECIPE_SOURCES)}.bin"
        if (loaded := read_cache(self.path)) is not None:
            self._plain, self.natives, self.complete = loaded
        if (loaded := read_cache(self.recipes_path)) is not None:
            self.recipes = loaded

    def add(self, compiled: Iterable[tuple[str, Code]]) -> None:
        """Takes over stencils compiled elsewhere, by the text of their keys."""
        for text, code in compiled:
            self.codes[text] = code
            self.compiled_forms += 1
            self._dirty = True

    def save(self, force: bool = False) -> None:
        """Writes the cache file if anything was compiled; a folder that cannot be written is not an error."""
        if not self._dirty and not force:
            return
        plain = {**self._plain, **{k: marshal.dumps((c.code, tuple(map(tuple, c.holes)))) for k, c in self.codes.items()}}
        if write_cache(self.path, (plain, self.natives, self.complete)):
            self._dirty = False

    def save_recipes(self) -> None:
        """Writes the recipes if templates were added."""
        if self.recipes_changed and write_cache(self.recipes_path, self.recipes):
            self.recipes_changed = False

    def __contains__(self, text: str) -> bool:
        return text in self.codes or text in self._plain

    def find(self, text: str) -> Code | None:
        code = self.codes.get(text)
        if code is None and (plain := self._plain.get(text)) is not None:
            data, holes = marshal.loads(plain)
            code = self.codes[text] = Code(data, tuple(Hole(*h) for h in holes))
        return code

    def names(self) -> set[str]:
        """The texts of all keys."""
        return self.codes.keys() | self._plain.keys()

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
        missing = list({key_text(k): k for k in keys if key_text(k) not in self}.items())
        start = time.perf_counter_ns()
        for first in range(0, len(missing), BATCH):
            batch = missing[first : first + BATCH]
            for (text, _), code in zip(batch, compile_keys(key for _, key in batch), strict=True):
                self.codes[text] = code
            self.compiled_forms += len(batch)
            if progress:
                progress("compiling instruction stencils", first + len(batch), len(missing))
        self._dirty |= bool(missing)
        self.compile_ns += time.perf_counter_ns() - start

    def put_native(self, name: str, data: Linkable) -> None:
        self.natives[name] = data
        self._dirty = True

    def native(self, form: Form) -> Linkable:
        text = key_text(Key(form))
        if text not in self.natives:
            start = time.perf_counter_ns()
            self.natives[text] = compile_native(form)
            self.compiled_forms += 1
            self.compile_ns += time.perf_counter_ns() - start
            self._dirty = True
        return self.natives[text]
