"""The package's modules in one cache file: used while sources are as they were, ignored when damaged or not to be trusted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Imports two modules behind a bundle and tells which came from it.
PROGRAM = """
import sys
from ringfence.core import bundle
loader = bundle.install()
import ringfence.core.units, ringfence.isa.x86.modes
names = ("ringfence.core.units", "ringfence.isa.x86.modes")
print(*[name for name in names if sys.modules[name].__loader__ is loader])
assert ringfence.core.units.__file__.endswith("units.py") and ringfence.core.units.parse_size("1K") == 1024
bundle.keep(loader)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def served(folder: Path) -> tuple[int, str]:
    """How many of the two modules came from the bundle, and what was traced."""
    environment = {**os.environ, "RINGFENCE_CACHE": str(folder), "RINGFENCE_TRACE": "start,stencils"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment, check=True)
    return len(done.stdout.split()), done.stderr


def bundle_of(folder: Path) -> Path:
    (path,) = folder.glob("modules-*.bin")
    return path


def test_the_second_run_uses_what_the_first_one_kept(folder: Path) -> None:
    assert served(folder) == (0, "")
    before = bundle_of(folder).stat().st_ino
    assert served(folder) == (2, "")
    assert bundle_of(folder).stat().st_ino == before, "there was nothing to add"


@pytest.mark.parametrize("at", [0, 9, 15, -1])
def test_a_damaged_index_is_ignored_and_mended(folder: Path, at: int) -> None:
    served(folder)
    data = bytearray(bundle_of(folder).read_bytes())
    data[at] ^= 0x55
    bundle_of(folder).write_bytes(data)
    count, traced = served(folder)
    assert count == 0 and "damaged" in traced
    assert served(folder) == (2, "")


def test_a_damaged_module_is_imported_as_usual(folder: Path) -> None:
    served(folder)
    data = bundle_of(folder).read_bytes()
    at = data.index(b"parse_size")
    bundle_of(folder).write_bytes(data[:at] + b"P" + data[at + 1 :])
    count, traced = served(folder)
    assert count == 1 and "damaged" in traced
    assert served(folder) == (2, "")


def test_what_others_can_write_is_never_executed(folder: Path) -> None:
    served(folder)
    bundle_of(folder).chmod(0o666)
    count, traced = served(folder)
    assert count == 0 and "can be written by others" in traced


def test_a_source_that_changed_is_read_again(tmp_path: Path, folder: Path) -> None:
    from ringfence.core import bundle

    source = tmp_path / "module.py"
    source.write_text("answer = 1\n")
    stamp = bundle.stamp_of(str(source))
    (folder / "modules-1.bin").write_bytes(b"".join(bundle.packed({"package.module": (stamp, b"N")})))
    (folder / "modules-1.bin").chmod(0o600)
    loader = bundle.BundleLoader(folder / "modules-1.bin")
    assert loader.find_spec("package.module", [str(tmp_path)]) is not None
    info = source.stat()
    source.write_text("answer = 2\n")
    os.utime(source, ns=(info.st_atime_ns, info.st_mtime_ns))  # its ctime tells
    assert loader.find_spec("package.module", [str(tmp_path)]) is None
    assert loader.find_spec("package.other", [str(tmp_path)]) is None


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_nothing_is_kept_where_nothing_can_be_written(folder: Path) -> None:
    folder.chmod(0o500)
    assert served(folder) == (0, "")
