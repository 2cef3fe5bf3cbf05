"""Every optimisation left out, alone and all at once: the host CPU and the manual find the same as with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ringfence.engine.switches import OPTIMISATIONS

from . import campaign, forms
from .engine_cpu import EngineCpu
from .host_cpu import HostCpu

HERE = Path(__file__).parent
STATES = 4  # of every form; test_engine.py has a million cases with everything on
UNMASKED = 0.002
NAMES = [*OPTIMISATIONS, "all"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
def test_user_mode_agrees_with_the_host(host: HostCpu, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("RINGFENCE_WITHOUT", name)
    engine = EngineCpu()
    shapes = list(forms.shapes())
    report = campaign.run(host, shapes, STATES, seed=3000, judge=campaign.engine_judge(engine), unmasked=UNMASKED)
    assert not report.failures, report.summary()
    assert report.cases >= 0.98 * STATES * len(shapes)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
def test_system_tests_pass(name: str) -> None:
    """All of test_system_*.py in a process of its own, whose guests are made without it."""
    files = sorted(str(path) for path in HERE.glob("test_system_*.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "RINGFENCE_WITHOUT": name}
    environment.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
