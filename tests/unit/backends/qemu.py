"""The outside judge of image files: qemu-img."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

needs_qemu_img = pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed")


def qemu_img(*arguments: str | Path) -> str:
    result = subprocess.run(["qemu-img", *map(str, arguments)], capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, f"qemu-img {arguments}: {result.stdout}{result.stderr}"
    return result.stdout


def check(path: Path) -> dict[str, int]:
    """The report of `qemu-img check`; the keys `corruptions` and `leaks` are there only when there are some."""
    result = subprocess.run(["qemu-img", "check", "--output=json", str(path)], capture_output=True, text=True, timeout=100)
    assert result.stdout, result.stderr
    report: dict[str, int] = json.loads(result.stdout)
    return report


def assert_clean(path: Path) -> None:
    report = check(path)
    assert not report.get("corruptions") and not report.get("leaks") and not report.get("check-errors"), report


def content(path: Path, format: str, scratch: Path) -> bytes:
    """The disk's contents as qemu-img reads them."""
    target = scratch / "converted.raw"
    qemu_img("convert", "-f", format, "-O", "raw", path, target)
    return target.read_bytes()
