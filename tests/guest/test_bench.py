"""`scripts/bench --quick` works and computes right; how fast anything is, is no matter of a test."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import block, boot, idle
from bench.figures import NATIVE, OURS, QEMU
from bench.packages import TIMED
from bench.programs import OWN
from tests.guest import guests
from tests.guest.session import REPOSITORY

pytestmark = [pytest.mark.guest, pytest.mark.slow, pytest.mark.timeout(900)]
TIMEOUT_S = 850
PICTURES = ("bench-tcg.png", "bench-native.png", "bench-boot.png")


def test_the_quick_bench(tmp_path: Path) -> None:
    if missing := [tool for tool in ("qemu-system-x86_64", "gcc", "taskset") if shutil.which(tool) is None]:
        pytest.skip(f"not installed here: {', '.join(missing)}")
    guests.debian_cloud_kernel()
    raw = tmp_path / "bench.json"
    command = [str(REPOSITORY / "scripts" / "bench"), "--quick", "--output", str(tmp_path), "--json", str(raw)]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = {row["name"]: row for part in json.loads(raw.read_text())["rows"].values() for row in part}
    page = (tmp_path / "bench.md").read_text()
    assert page == done.stdout
    for name, row in rows.items():
        assert f"| {name} |" in page
        assert all(value > 0 for values in row["values"].values() for value in values), row
    for name in OWN:
        assert set(rows[name]["checksums"]) == {NATIVE, OURS, QEMU}
        assert len(set(rows[name]["checksums"].values())) == 1
    assert set(TIMED) <= set(rows) or "openssl, sqlite3 and python3 were left out" in page
    for name in (boot.DEBIAN + boot.WARM_SUFFIX, idle.CPU, idle.SECOND, *block.TESTS.values()):
        assert {OURS, QEMU} <= set(rows[name]["values"])
    if importlib.util.find_spec("matplotlib"):
        assert all((tmp_path / "images" / name).read_bytes().startswith(b"\x89PNG") for name in PICTURES)
