"""The package's modules in one cache file, for starts that need two hundred of them.

To look for a module on the path, open its bytecode and check it takes a fifth of what importing it takes; where Python is told to write
no bytecode, compiling takes five times as long as everything else.  The file holds the code of modules that earlier runs have used, each
with inode, size and times of its source as they were (ctime, which nobody can set): a module that differs is imported as usual, and the
file is made again at the end of that run.  Packages are always imported as usual.

    u64 where the index is, u32 its bytes, u32 its crc32; the modules' code, marshalled; the index, marshalled:
    name -> (stamp, where, bytes, crc32)
"""

from __future__ import annotations

import marshal
import os
import struct
import sys
import zlib
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from types import ModuleType

from ringfence.core.cache_files import open_private, replace_file
from ringfence.core.paths import cache_folder
from ringfence.core.trace import tracer

_ROOT = Path(__file__).parents[1]
_PACKAGE = f"{__package__.partition('.')[0]}."

_HEAD = struct.Struct("<QII")

trace = tracer("start")

Entry = tuple[tuple[int, ...], int, int, int]  # stamp, where, bytes, crc32


def _path() -> Path:
    """Two installations, or two versions of Python, may share a cache."""
    place = zlib.crc32(f"{_ROOT} {sys.version} {sys.flags.optimize}".encode(), zlib.crc32(MAGIC_NUMBER))
    return cache_folder() / f"modules-{place:08x}.bin"


def stamp_of(source: str) -> tuple[int, ...]:
    info = os.stat(source)
    return info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


class BundleLoader:
    """Finds and loads modules; stands before Python's own finders.  The file stays open as long as the process lives."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        self._found: dict[str, bytes] = {}
        self._descriptor = open_private(path)
        if self._descriptor is None:
            return
        head = os.pread(self._descriptor, _HEAD.size, 0)
        at, size_bytes, checksum = _HEAD.unpack(head) if len(head) == _HEAD.size else (0, 0, 0)
        index = os.pread(self._descriptor, size_bytes, at) if at <= sys.maxsize else b""
        if index and len(index) == size_bytes and zlib.crc32(index) == checksum:
            self.entries = marshal.loads(index)
        else:
            self._tell("index")

    def _tell(self, what: str) -> None:
        if trace:
            trace("%s is damaged (%s): ignored", self.path, what)

    def read(self, name: str) -> bytes | None:
        """A module's code as it was kept; None where it is damaged."""
        _, at, size_bytes, checksum = self.entries[name]
        assert self._descriptor is not None
        data = os.pread(self._descriptor, size_bytes, at)
        if len(data) == size_bytes and zlib.crc32(data) == checksum:
            return data
        self._tell(name)
        del self.entries[name]
        return None

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        entry = self.entries.get(name)
        if entry is None or not path:
            return None
        source = f"{path[0]}/{name.rpartition('.')[2]}.py"
        try:
            if stamp_of(source) != entry[0]:
                return None
        except OSError:
            return None
        data = self.read(name)
        if data is None:
            return None
        self._found[name] = data
        spec = ModuleSpec(name, self, origin=source)  # type: ignore[arg-type]
        spec.has_location = True
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(marshal.loads(self._found.pop(module.__name__)), module.__dict__)


def install() -> BundleLoader:
    """Modules that are imported from now on come from the bundle, if they are in it."""
    bundle = BundleLoader(_path())
    sys.meta_path.insert(0, bundle)
    return bundle


def keep(bundle: BundleLoader) -> None:
    """Adds the modules that this run had to import otherwise."""
    if not os.access(cache_folder(), os.W_OK):
        return
    codes: dict[str, tuple[tuple[int, ...], bytes]] = {}
    for name, module in list(sys.modules.items()):
        loader = getattr(module, "__loader__", None)
        if name.startswith(_PACKAGE) and type(loader) is SourceFileLoader and not loader.is_package(name):
            stamp = stamp_of(loader.path)  # before its code: should it change meanwhile, the stamp is the older one
            if name not in bundle.entries or bundle.entries[name][0] != stamp:  # else it came before the bundle
                codes[name] = stamp, marshal.dumps(loader.get_code(name))
    if not codes:
        return
    for name, entry in list(bundle.entries.items()):
        if name not in codes and (data := bundle.read(name)) is not None:
            codes[name] = entry[0], data
    replace_file(bundle.path, packed(codes))


def packed(codes: dict[str, tuple[tuple[int, ...], bytes]]) -> list[bytes]:
    """The file's parts."""
    entries: dict[str, Entry] = {}
    at = _HEAD.size
    for name, (stamp, data) in codes.items():
        entries[name] = stamp, at, len(data), zlib.crc32(data)
        at += len(data)
    index = marshal.dumps(entries)
    return [_HEAD.pack(at, len(index), zlib.crc32(index)), *(data for _, data in codes.values()), index]
