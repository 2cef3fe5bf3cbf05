"""The image `debian` without building it: what is refused, and how it is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ringfence.core.errors import UserError
from ringfence.images import debian
from ringfence.images.debian import BuiltImage
from ringfence.machine.spec import DiskSpec, MachineSpec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (debian.KERNEL, debian.DISK):
        (tmp_path / name).write_bytes(b"x")
    values = {"kernel_version": "6.1", "root_digest": "00", "packages": {"apt": "2.6"}}
    (tmp_path / debian.RECORD).write_text(json.dumps(values))
    return tmp_path


def test_loads_what_was_built(folder: Path) -> None:
    assert debian.load(folder) == BuiltImage(folder / "kernel", folder / "disk.qcow2", "6.1", "00", {"apt": "2.6"})


@pytest.mark.parametrize("record", ["", "[]", "{}", "null", '{"kernel_version": 1, "root_digest": 2, "packages": 3}', "\xff"])
def test_a_damaged_record(folder: Path, record: str) -> None:
    (folder / debian.RECORD).write_text(record)
    with pytest.raises(UserError, match="no whole Debian image") as error:
        debian.load(folder)
    assert "build_debian" in error.value.remedy


@pytest.mark.parametrize("name", [debian.KERNEL, debian.DISK])
def test_a_file_that_is_gone(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"has lost its {name}"):
        debian.load(folder)


def test_how_it_is_run(folder: Path) -> None:
    made = debian.recipe(debian.load(folder), init="agent", hostname="prairie", terminal="xterm", size=(80, 25), append="debug")
    assert made.append.split() == [
        "console=ttyS0", "quiet", "ringfence.init=agent", "ringfence.hostname=prairie", "ringfence.term=xterm", "ringfence.size=80x25",
        "root=/dev/nvme0n1", "rootfstype=ext4", "rw", "init=/usr/lib/ringfence/init", "debug",
    ]  # fmt: skip
    assert (made.initrd, made.snapshot, made.interface) == ((), True, "nvme")
    disk = DiskSpec(path=made.disk, format="qcow2", snapshot=made.snapshot, interface=made.interface)
    spec = MachineSpec.build(kernel=made.kernel, initrd=made.initrd, append=made.append, disks=(disk,), board=made.board)
    assert spec.interface_of(spec.disks[0]) == "nvme"
    with pytest.raises(UserError, match="host name"):
        debian.recipe(debian.load(folder), hostname="a b")


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"size_bytes": 1 << 20}, "not possible"),
        ({"size_bytes": (1 << 30) + 5}, "not possible"),
        ({"packages": ["Less"]}, "not the name of a package"),
        ({"packages": ["-o=Dir=/"]}, "not the name of a package"),
        ({"packages": ["?all"]}, "not the name of a package"),
    ],
)
def test_what_is_refused(tmp_path: Path, values: dict[str, Any], cause: str) -> None:
    with pytest.raises(UserError, match=cause) as error:
        debian.build_debian(tmp_path / "image", **values)
    assert error.value.remedy and not (tmp_path / "image").exists()


def test_a_machine_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt-get is not installed here") as error:
        debian.build_debian(tmp_path / "image")
    assert "Debian" in error.value.remedy
