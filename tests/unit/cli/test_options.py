"""The quick way to read the options of `run` understands what typer does, or leaves it to typer."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from ringfence.cli import main, options
from ringfence.cli.app import app
from ringfence.cli.options import RunOptions, read_exec, read_options

ROOT = Path(__file__).parents[3]


def by_typer(words: list[str], monkeypatch: pytest.MonkeyPatch) -> RunOptions | None:
    """What typer hands to `run_machine`; None where it refuses the words or shows help."""
    seen: list[RunOptions] = []

    def take(given: RunOptions) -> int:
        seen.append(given)
        return 0

    monkeypatch.setattr(importlib.import_module("ringfence.cli.run"), "run_machine", take)
    with pytest.raises(SystemExit):
        app(["run", *words])
    return seen[0] if seen else None


def option_words() -> list[list[str]]:
    """Every option that typer knows, once, with a value of its kind."""
    command: Any = typer.main.get_command(app)
    found = []
    for parameter in command.commands["run"].params:
        name = parameter.opts[0]
        if not name.startswith("--"):
            found.append(["alpine"])
        elif name != "--help":
            number = RunOptions.__annotations__[options._FIELD_OF.get(name, "name")] in options._NUMBERS
            found.append([name] if parameter.is_flag else [name, "3" if number else "text"])
    return found


@pytest.mark.parametrize("words", option_words(), ids=lambda words: words[0])
def test_every_option_is_known(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    quick = read_options(words)
    assert quick is not None
    assert quick == by_typer(words, monkeypatch)


def test_nothing_but_what_typer_knows() -> None:
    assert {words[0] for words in option_words()} == {"alpine", *options._FIELD_OF}


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--disk", "a", "--memory=1G", "--disk=b,readonly", "--memory", "2G"],
        ["--append=-x -y=z", "--kernel", "k", "--initrd", "a", "--initrd", "b"],
        ["--append=", "--kernel", "k"],
        ["--timeout=1e1", "alpine", "--gdb-wait"],
    ],
)
def test_plain_words_mean_the_same(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    quick = read_options(words)
    assert quick is not None
    assert quick == by_typer(words, monkeypatch)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--disk"],
        ["--disk", "--memory", "1G"],
        ["--append", "-x"],
        ["--disks", "a"],
        ["--image", "alpine"],
        ["--gdb_wait"],
        ["--gdb-wait=1"],
        ["--timeout", "soon"],
        ["--mem", "1G"],
        ["-m", "1G"],
        ["alpine", "debian"],
        ["--", "alpine"],
        ["alpine", "--"],
        ["--kernel", "k", "--", "ls"],
    ],
)
def test_the_rest_is_left_to_typer(words: list[str]) -> None:
    assert read_options(words) is None


@pytest.mark.parametrize(
    "words",
    [
        ["box", "--", "ls"],
        ["box", "--", "sh", "-c", "exit 3", "--", "-x", "--env"],
        ["12", "--env", "A=b c", "--workdir", "/tmp", "--env", "HOME", "--", "--odd"],
        ["--env", "A=1", "box", "--", "ls"],
        ["box", "--env=A=1", "--", "ls"],
        ["box", "ls"],
        ["box", "--"],
        ["box", "--env", "--", "ls"],
        ["box", "--unknown", "x", "--", "ls"],
        [],
    ],
)
def test_words_of_exec_mean_the_same(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """To the quick reader, where it takes them, as to typer."""
    seen: list[tuple[str, tuple[str, ...], tuple[str, ...], str | None]] = []

    def take(machine: str, command: Sequence[str], environment: Sequence[str], folder: str | None) -> int:
        seen.append((machine, tuple(command), tuple(environment), folder))
        return 0

    monkeypatch.setattr(importlib.import_module("ringfence.cli.guest_commands"), "execute", take)
    quick = read_exec(words)
    with pytest.raises(SystemExit):
        app(["exec", *words])
    if quick is not None:
        assert seen == [tuple(quick)]
    else:
        assert words in ([], ["box", "--"], ["box", "ls"]) or words[1].startswith("--env") or words[1] == "--unknown" or words[0] == "--env"


def test_a_command_behind_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["alpine", "--memory", "1G", "--", "sh", "-c", "echo --memory 2G"]
    quick = read_options(words)
    assert quick is not None and quick == by_typer(words, monkeypatch)
    assert quick.command == ("sh", "-c", "echo --memory 2G") and quick.memory == "1G"


def test_a_shell_s_question_is_left_to_typer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert main._plain_run(["run", "alpine"]) == RunOptions(image="alpine")
    assert main._plain_run(["doctor"]) is None
    monkeypatch.setenv("_RINGFENCE_COMPLETE", "complete_bash")
    assert main._plain_run(["run", "alpine"]) is None


def ringfence(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ringfence", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, env={**os.environ, **environment})


def test_help_and_errors_are_typer_s() -> None:
    assert "--screenshot-at-exit" in ringfence("run", "--help", COLUMNS="200").stdout
    wrong = ringfence("run", "--mermory", "1G")
    assert wrong.returncode == 2 and "--memory" in wrong.stderr  # what was probably meant
