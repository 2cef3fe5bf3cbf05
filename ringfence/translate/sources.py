"""Which version of the sources a cache belongs to.

A digest of what the cached things are made from is part of each cache's name.  To read and hash the sources takes as long as a
tenth of a start, so the digests are kept in a cache of their own, for files whose inode, size and times (ctime, which nobody can set)
are as they were.
"""

from __future__ import annotations

import functools
import os
import zlib
from importlib.util import find_spec
from pathlib import Path

from ringfence.core.cache_files import read_cache, write_cache
from ringfence.core.paths import cache_folder
from ringfence.translate.host_cpu import host_features

_ROOT = Path(__file__).parent.parent
_FOLDERS = ("ir", "isa/x86", "translate")
# What forms and recipes are made from, and what the run time is made from besides: beginnings of names.
FORMS = ("ir/", "isa/x86/", "translate/lower", "translate/layout.py", "translate/objects.py", "translate/compiling.py")
RECIPES = (*FORMS, "translate/recipes.py")
RUNTIME = ("translate/native", "translate/runtime.py", "translate/stubs.py", "translate/code_memory.py", "translate/linking.py")
IMAGE = (*FORMS, *RUNTIME)
BLOCKS = ("ir/", "isa/x86/", "translate/")
_KINDS = (FORMS, RECIPES, RUNTIME, IMAGE, BLOCKS)


@functools.cache
def _digests() -> dict[tuple[str, ...], str]:
    files = {f"{folder}/{entry.name}": entry for folder in _FOLDERS for entry in os.scandir(_ROOT / folder) if entry.name.endswith(".py")}
    stamp: list[object] = [host_features(), _ROOT.as_posix()]
    for name in sorted(files):
        stamp.append((name, *_times(files[name].stat())))
    compiler = find_spec("llvmlite")
    if compiler is not None and compiler.origin is not None:
        stamp.append((compiler.origin, *_times(os.stat(compiler.origin))))
    place = zlib.crc32(_ROOT.as_posix().encode())  # two installations may share a cache
    path = cache_folder() / f"sources-{place:08x}.bin"
    kept = read_cache(path)
    if kept is not None and kept[0] == stamp:
        digests: dict[tuple[str, ...], str] = kept[1]
    else:
        digests = {kind: _digest(kind, files) for kind in _KINDS}
        write_cache(path, (stamp, digests))
    return digests


def _times(info: os.stat_result) -> tuple[int, ...]:
    return info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _digest(kind: tuple[str, ...], files: dict[str, os.DirEntry[str]]) -> str:
    import hashlib

    import llvmlite

    digest = hashlib.sha256(f"{host_features()} {llvmlite.__version__}".encode())
    for name in sorted(files):
        if name.startswith(kind):
            digest.update(Path(files[name]).read_bytes())
    return digest.hexdigest()[:24]


def sources_digest(kind: tuple[str, ...]) -> str:
    """Changes with any of these source files, the compiler's version and the host's features."""
    return _digests()[kind]


def cache_path(name: str, kind: tuple[str, ...]) -> Path:
    """The file of this name for the sources as they are."""
    return cache_folder() / f"{name}-{sources_digest(kind)}.bin"
