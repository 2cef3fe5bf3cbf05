"""The socket at which other commands reach a running machine."""

from __future__ import annotations

import io
import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ringfence.backends.api import Frame
from ringfence.cli.screenshot import print_text, take
from ringfence.core.errors import UserError
from ringfence.machine import control
from ringfence.machine.control import ControlSocket
from ringfence.machine.control_client import ask, find_machine, running_machines
from ringfence.machine.machine import Machine
from tests.unit.machine.test_screen import Parts, build


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RINGFENCE_RUNTIME", str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
def parts() -> Parts:
    return Parts()


@pytest.fixture
def machine(tmp_path: Path, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with build(tmp_path, parts, monkeypatch, name="old-pc") as made:
        made.start()
        yield made


@pytest.fixture
def served(machine: Machine) -> Iterator[ControlSocket]:
    with_socket = ControlSocket(machine)
    yield with_socket
    with_socket.close()


def test_only_its_user_reaches_it(served: ControlSocket, folder: Path) -> None:
    assert served.path == folder / f"old-pc.{os.getpid()}.sock"
    assert stat.S_IMODE(served.path.stat().st_mode) == 0o600 and stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_status_screenshot_and_text(served: ControlSocket, parts: Parts) -> None:
    found = find_machine(None)
    assert found == find_machine("old-pc") == find_machine(str(os.getpid()))
    assert ask(found, "status")[0] == {"name": "old-pc", "pid": os.getpid(), "board": "microvm", "running": True}
    head, data = ask(found, "screenshot")
    image = Image.open(io.BytesIO(data))
    assert image.size == (2, 1) == (head["width"], head["height"]) and image.getpixel((1, 0)) == (0x40, 0x50, 0x60)
    parts.screen.shown = ["grün ░▒▓", "C:\\>"]
    assert ask(found, "text")[1].decode() == "grün ░▒▓\nC:\\>"
    with pytest.raises(UserError, match="not known"):
        ask(found, "format-disk")


def test_the_command(served: ControlSocket, parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    take("old-pc", str(tmp_path / "now.png"))
    assert Image.open(tmp_path / "now.png").size == (2, 1)
    print_text(None)
    assert capsys.readouterr().out == "Booting...\n"
    with pytest.raises(UserError, match="cannot be written"):
        take(None, str(tmp_path / "none" / "now.png"))


def test_a_large_picture_arrives_whole(served: ControlSocket, parts: Parts) -> None:
    data = os.urandom(800 * 600 * 3)
    parts.screen.shown = Frame(800, 600, data)
    assert Image.open(io.BytesIO(ask(find_machine(None), "screenshot")[1])).tobytes() == data


def test_errors_of_the_machine_are_told(machine: Machine, served: ControlSocket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_screen", None)
    with pytest.raises(UserError, match="no screen"):
        ask(find_machine(None), "screenshot")


def test_which_machine(served: ControlSocket, machine: Machine, folder: Path) -> None:
    with pytest.raises(UserError, match="No machine 'other'") as caught:
        find_machine("other")
    assert "old-pc" in caught.value.remedy
    copy = folder / "second.12345.sock"
    copy.symlink_to(folder / f"old-pc.{os.getpid()}.sock")
    assert [found.name for found in running_machines()] == ["old-pc", "second"]
    with pytest.raises(UserError, match="Several"):
        find_machine(None)
    assert find_machine("second").pid == 12345


def test_nothing_runs(folder: Path) -> None:
    with pytest.raises(UserError, match="No machine of yours"):
        find_machine(None)


def test_what_dead_machines_leave_is_removed(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    path = folder / "dead.99.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists() and running_machines() == [] and not path.exists()


def test_close_removes_the_socket(machine: Machine, folder: Path) -> None:
    served = ControlSocket(machine)
    assert len(list(folder.iterdir())) == 1
    served.close()
    served.close()
    assert not list(folder.iterdir())


@pytest.mark.parametrize("mode", [0o755, 0o777])
def test_a_folder_that_others_may_enter_is_not_used(machine: Machine, folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    served = ControlSocket(machine)
    assert served.path is None and not list(folder.iterdir())
    served.close()
    with pytest.raises(UserError, match="not this user's alone"):
        find_machine(None)


@pytest.mark.parametrize(
    "request_", [b"", b"\n", b"{", b"[1]\n", b'"text"\n', b'{"do": 5}\n', b'{"do": ["text"]}\n', b"\xff\xfe\n", b"x" * 70000]
)
def test_nonsense_hurts_nobody(served: ControlSocket, monkeypatch: pytest.MonkeyPatch, request_: bytes) -> None:
    monkeypatch.setattr(control, "_TALK_S", 0.2)
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(5)
        raw.connect(str(served.path))
        raw.sendall(request_)
        raw.shutdown(socket.SHUT_WR)
        answer: Any = b""
        try:
            while part := raw.recv(4096):
                answer += part
        except ConnectionResetError:
            pass
        assert not answer or "error" in json.loads(answer)
    assert ask(find_machine(None), "status")[0]["running"]
