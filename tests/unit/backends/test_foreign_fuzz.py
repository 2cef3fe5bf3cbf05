"""Damaged images of every format that is converted: each ends in data or a UserError, within a second and in little memory.

RINGFENCE_FUZZ_MUTATIONS says how many of each format are tried (default 2,000), RINGFENCE_FUZZ_SEED which.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.backends.foreign_fuzz import KINDS, SLOWEST_S

MUTATIONS = int(os.environ.get("RINGFENCE_FUZZ_MUTATIONS", "2000"))
SEED = os.environ.get("RINGFENCE_FUZZ_SEED", "1")
MOST_GROWTH_KIB = 64 << 10


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where that is possible: each conversion waits for the disk otherwise."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="ringfence-") as name:
        yield Path(name)


@pytest.mark.timeout(60 + MUTATIONS // 20)
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_images_end_in_data_or_an_error(kind: str, folder: Path) -> None:
    if kind == "qcow2" and not shutil.which("qemu-img"):
        pytest.skip("qemu-img is not installed; it makes the qcow2 image to damage")
    result = subprocess.run(
        [sys.executable, "-m", "tests.unit.backends.foreign_fuzz", kind, str(MUTATIONS), SEED, str(folder)],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},  # an arena per thread reserves more address space than the limit allows
        capture_output=True,
        text=True,
        timeout=50 + MUTATIONS // 20,
    )
    assert result.returncode == 0, f"{result.stdout}{result.stderr}"
    report = json.loads(result.stdout)
    assert report["slowest_s"] < SLOWEST_S, report
    assert report["grown_kib"] < MOST_GROWTH_KIB, report
    # damage that is refused at once, or never found, would test nothing
    assert 0.05 * MUTATIONS < report["read"] < 0.95 * MUTATIONS, report
