"""What `ringfence run` shows where, and `ringfence screenshot`."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringfence.cli import run
from ringfence.cli.run import make_spec
from ringfence.core.errors import UserError
from tests.unit.cli.test_cli import OPTIONS, ringfence


@pytest.fixture(params=[True, False], ids=["terminal", "pipe"])
def on_terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(run, "_in_terminal", lambda: request.param)
    return bool(request.param)


FIRMWARE = OPTIONS.replace(kernel=None, cdroms=("a.iso",), serial=None)
KERNEL = OPTIONS.replace(serial=None)


def test_a_terminal_shows_the_screen_of_what_firmware_starts(on_terminal: bool) -> None:
    spec = make_spec(FIRMWARE)
    assert (spec.display, spec.serial) == (("terminal", "null") if on_terminal else (None, "stdio"))
    spec = make_spec(FIRMWARE.replace(serial="stdio"))
    assert (spec.display, spec.serial) == (None, "stdio")
    spec = make_spec(FIRMWARE.replace(display="vnc=:1"))
    assert (spec.display, spec.serial) == ("vnc=:1", "stdio")


def test_it_shows_the_serial_line_of_a_kernel(on_terminal: bool) -> None:
    spec = make_spec(KERNEL)
    assert (spec.display, spec.serial, spec.has_screen) == (None, "stdio", False)
    spec = make_spec(KERNEL.replace(display="terminal", serial="pty"))
    assert (spec.display, spec.serial, spec.has_screen) == ("terminal", "pty", True)
    assert make_spec(KERNEL.replace(display="none")).has_screen
    assert make_spec(KERNEL.replace(screenshot_at_exit="a.png")).has_screen


def test_not_both_in_one_terminal(on_terminal: bool) -> None:
    with pytest.raises(UserError, match="cannot both"):
        make_spec(KERNEL.replace(display="terminal", serial="stdio"))


@pytest.mark.parametrize("wrong", ["gtk", "vnc=5900", "vnc,word"])
def test_wrong_displays(wrong: str) -> None:
    with pytest.raises(UserError, match="display"):
        make_spec(OPTIONS.replace(display=wrong))


@pytest.mark.parametrize("name", ["a b", "../x", "", "x" * 41])
def test_wrong_names(name: str) -> None:
    if name:
        with pytest.raises(UserError, match="name"):
            make_spec(OPTIONS.replace(name=name))
    assert make_spec(OPTIONS.replace(name="old-pc.1")).name == "old-pc.1"


def test_a_folder_that_is_missing_is_told_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--screenshot-at-exit: there is no folder"):
        run.run_machine(OPTIONS.replace(screenshot_at_exit=str(tmp_path / "none" / "x.png")))


def test_screenshot_without_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGFENCE_RUNTIME", str(tmp_path))
    tmp_path.chmod(0o700)
    done = ringfence("screenshot", str(tmp_path / "x.png"))
    assert done.returncode == 125 and "No machine of yours is running" in done.stderr and "Traceback" not in done.stderr
    assert ringfence("screenshot").returncode == 2
