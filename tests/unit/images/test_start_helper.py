"""The helper that the agent starts commands with: the committed file is what its source says, and does it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ringfence.images import alpine

GUEST = Path(alpine.__file__).parent / "guest"


def test_the_file_is_made_from_its_source(tmp_path: Path) -> None:
    if missing := [tool for tool in ("as", "ld") if shutil.which(tool) is None]:
        pytest.skip(f"not installed here: {', '.join(missing)}")
    object_, made = tmp_path / "start.o", tmp_path / "start"
    subprocess.run(["as", "-o", object_, GUEST / "start.S"], check=True, timeout=30)
    subprocess.run(["ld", "--oformat", "binary", "-Ttext", "0x10000", "-o", made, object_], check=True, timeout=30)
    assert made.read_bytes() == (GUEST / "start").read_bytes()


@pytest.fixture
def start(tmp_path: Path) -> str:
    copy = tmp_path / "start"
    shutil.copy(GUEST / "start", copy)
    copy.chmod(0o755)
    return str(copy)


def test_arguments_environment_and_status(start: str) -> None:
    done = subprocess.run([start, 'echo "$A $0"; exit 9'], env={"A": "x y"}, capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.returncode) == ("x y /bin/sh\n", 9)


@pytest.mark.parametrize("name", ["INT", "QUIT"])
def test_signals_end_what_a_shell_without_job_control_started(start: str, name: str) -> None:
    """A shell has its background processes ignore both."""
    script = f'"$1" "exec sleep 20" & sleep 0.3; kill -{name} $!; wait $!; echo $?'
    done = subprocess.run(["sh", "-c", script, "sh", start], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.strip() == {"INT": "130", "QUIT": "131"}[name]


def test_a_session_of_its_own(start: str) -> None:
    """Session and process number are the same (proc(5): the sixth and the first field)."""
    script = f'"{start}" "exec cat /proc/self/stat" & wait $!'
    fields = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=30, check=True).stdout.rpartition(") ")
    assert fields[2].split()[3] == fields[0].split()[0]
