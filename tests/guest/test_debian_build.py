"""`debian` built here from the machine's own package sources, twice, and used: a shell, commands, a kept disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ringfence import DiskSpec, Machine, MachineSpec
from ringfence.backends.block.open import open_block
from ringfence.core.errors import UserError
from ringfence.core.paths import cache_folder
from ringfence.images import debian
from ringfence.images.deb_apt import PrivateApt
from ringfence.images.deb_sources import machine_sources
from ringfence.images.debian import BuiltImage
from tests.guest.guests import CACHE
from tests.guest.session import REPOSITORY

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]
BUILD_S = 500
NOBODY = 65534
# Started with the folder for the image; whoever builds has no capability to change what is not its own.
BUILD = """
import sys
from pathlib import Path
from ringfence.images.debian import build_debian
print(build_debian(Path(sys.argv[1]), offline=True).root_digest)
"""


@pytest.fixture(scope="module")
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """XDG_CACHE_HOME with all packages downloaded, so that what fails later is a failure."""
    cache = CACHE / "debian-build"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        try:
            # The very folder that the build uses.
            apt = PrivateApt(debian.apt_folder(None), machine_sources(None))
            with apt.locked():
                apt.update()
                apt.fetch(apt.resolve(debian.wanted_packages()))
        except UserError as error:
            pytest.skip(f"Debian's packages cannot be had here: {error.cause}")
    return cache


@pytest.fixture(scope="module")
def image(user_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> BuiltImage:
    folder = tmp_path_factory.mktemp("image")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RINGFENCE_CACHE", str(cache_folder()))  # of compiled code: the usual one
        patch.setenv("XDG_CACHE_HOME", str(user_cache))
        return debian.build_debian(folder, offline=True)


def spec_of(image: BuiltImage, **values: object) -> MachineSpec:
    recipe = debian.recipe(image, **values)  # type: ignore[arg-type]
    disk = DiskSpec(path=recipe.disk, format="qcow2", snapshot=recipe.snapshot, interface=recipe.interface)
    return MachineSpec.build(
        kernel=recipe.kernel, initrd=recipe.initrd, append=recipe.append, disks=(disk,), devices=("agent",), timeout=200
    )


@contextmanager
def running(image: BuiltImage, **values: object) -> Iterator[Machine]:
    """For commands; switched off at the end."""
    with Machine(spec_of(image, init="agent", **values)) as machine:
        machine.start()
        machine.wait_ready()
        yield machine
        machine.switch_off()
        assert machine.wait(60).code == 0


@pytest.fixture(scope="module")
def machine(image: BuiltImage) -> Iterator[Machine]:
    with running(image) as started:
        yield started


def told(machine: Machine, command: str) -> str:
    result = machine.exec(["sh", "-c", command], timeout_s=120)
    assert result.status == 0, result
    return result.stdout.decode().strip()


@pytest.fixture
def home(user_cache: Path) -> Iterator[Path]:
    """A home folder of its own for whoever builds a second time, with what has been downloaded and compiled."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        shutil.copytree(user_cache, Path(name) / "cache")
        shutil.copytree(cache_folder(), Path(name) / "compiled", ignore=shutil.ignore_patterns("debian"))
        if os.geteuid() == 0:
            for path in (Path(name), *Path(name).rglob("*")):
                os.chown(path, NOBODY, NOBODY)
        yield Path(name)


def test_a_second_build_by_an_ordinary_user_is_the_same(image: BuiltImage, home: Path) -> None:
    environment = {
        **os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "RINGFENCE_CACHE": str(home / "compiled"),
        "XDG_DATA_HOME": str(home / "data"), "RINGFENCE_RUNTIME": str(home / "run"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
    }  # fmt: skip
    as_whom = dropping_root(environment) if os.geteuid() == 0 else []
    command = [*as_whom, sys.executable, "-c", BUILD, str(home / "image")]
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=BUILD_S, check=False)
    assert done.returncode == 0, done.stderr
    second = debian.load(home / "image")
    if os.geteuid() == 0:
        assert {path.stat().st_uid for path in (second.kernel, second.disk)} == {NOBODY}
    assert done.stdout.strip() == second.root_digest == image.root_digest
    assert second.packages == image.packages and second.kernel.read_bytes() == image.kernel.read_bytes()
    assert sorted(path.name for path in (home / "image").iterdir()) == ["disk.qcow2", "image.json", "kernel"]


def dropping_root(environment: dict[str, str]) -> list[str]:
    """What a command of an ordinary user's begins with.  Where only root may read the interpreter or the code, that user may read all."""
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed here: the build was not repeated as an ordinary user")
    drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    reads = "cap_dac_read_search"
    for words in ([*drop, "--inh-caps=-all"], [*drop, f"--inh-caps=-all,+{reads[4:]}", f"--ambient-caps=-all,+{reads[4:]}"]):
        trial = [*words, sys.executable, "-c", "import ringfence.images.debian, ringfence.machine.machine"]
        if subprocess.run(trial, env=environment, cwd="/", capture_output=True, timeout=60, check=False).returncode == 0:
            return words
    pytest.skip("an ordinary user cannot read the Python here: the build was not repeated as one")


def test_the_file_system_is_whole(image: BuiltImage, tmp_path: Path) -> None:
    if shutil.which("e2fsck") is None and not Path("/usr/sbin/e2fsck").exists():
        pytest.skip("e2fsck is not installed here: the file system was not checked")
    raw = tmp_path / "raw.img"
    block = open_block(image.disk, readonly=True, format="qcow2")
    with open(raw, "wb") as file:
        file.truncate(block.size_bytes)
        buffer, empty = bytearray(1 << 20), bytes(1 << 20)
        for offset in range(0, block.size_bytes, len(buffer)):
            block.read(offset, memoryview(buffer))
            if buffer != empty:
                file.seek(offset)
                file.write(buffer)
    block.close()
    environment = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
    done = subprocess.run(["e2fsck", "-fn", str(raw)], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_it_is_made_of(image: BuiltImage, machine: Machine) -> None:
    assert json.loads((image.disk.parent / "image.json").read_text())["packages"] == image.packages
    listed = told(machine, "dpkg-query -W -f '${db:Status-Abbrev} ${Package} ${Version}\\n'")
    assert {name: version for _, name, version in map(str.split, listed.splitlines())} == image.packages
    assert {line.split()[0] for line in listed.splitlines()} == {"ii"}
    assert told(machine, "uname -r") == image.kernel_version
    assert "ID=debian" in told(machine, "cat /etc/os-release").splitlines()


def test_programs_run(machine: Machine) -> None:
    assert told(machine, "apt-get --version").startswith("apt ")
    assert told(machine, "python3 -c 'print(1)'") == "1"
    assert told(machine, "perl -e 'print 6 * 7'") == "42"
    assert told(machine, "apt-get check && dpkg --audit").splitlines()[-1].startswith("Building dependency tree")
    assert told(machine, "dpkg --verify") == ""
    assert told(machine, "modprobe overlay && grep overlay /proc/filesystems").endswith("overlay")
    assert "LOOPBACK,UP" in told(machine, "ip -brief link show lo")
    assert told(machine, "readlink /proc/1/exe; tr '\\0' ' ' </proc/1/cmdline").splitlines() == [
        "/usr/bin/dash",
        "/bin/sh /usr/lib/ringfence/init",
    ]


def test_everything_belongs_to_root(machine: Machine) -> None:
    assert told(machine, "find / -xdev ! -uid 0 | head") == ""
    groups = told(machine, "find / -xdev ! -gid 0 -printf '%p %g\\n'").splitlines()
    assert "/etc/shadow shadow" in groups and "/var/mail mail" in groups and len(groups) < 20
    assert told(machine, "stat -c '%a %U:%G' / /tmp /root /etc/shadow /usr/bin/passwd").splitlines() == [
        "755 root:root", "1777 root:root", "700 root:root", "640 root:shadow", "4755 root:root",
    ]  # fmt: skip


def test_nothing_of_the_build_is_left(machine: Machine) -> None:
    assert told(machine, "ls -A /init /ringfence /mnt /tmp /var/log/*.log /usr/sbin/policy-rc.d 2>/dev/null || :") == "/mnt:\n\n/tmp:"
    assert told(machine, "find /usr /boot /opt /srv -newer /usr | head") == ""  # that of the latest file in a package
    status = machine.exec(["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert (status.status, status.stdout, status.stderr) == (7, b"out\n", b"err\n")


def test_orphans_are_waited_for(machine: Machine) -> None:
    told(machine, "(sh -c 'sleep 0.2 & exit 0' &) ; sleep 1")
    assert "Z" not in told(machine, "ps -e -o stat= | cut -c1 | sort -u").split()


def test_a_root_shell_on_the_console(image: BuiltImage) -> None:
    with Machine(spec_of(image, hostname="prairie", terminal="xterm", size=(90, 30))) as machine:
        machine.start()
        machine.console.wait_for(b"root@prairie:~# ", 60)
        machine.console.send("tty; stty size; echo $TERM $((6 * 7)); hostname; sleep 30 & jobs; kill %1\n")
        answer = machine.console.wait_for(b"Running", 30) + machine.console.wait_for(b"# ", 30)
        for wanted in (b"/dev/ttyS0\r\n", b"30 90\r\n", b"xterm 42\r\n", b"prairie\r\n"):
            assert wanted in answer
        assert b"no job control" not in machine.console.transcript
        machine.console.send("exit\n")  # the end of the shell switches the machine off
        assert machine.wait(60).code == 0


def test_reboot_and_poweroff(image: BuiltImage) -> None:
    with Machine(spec_of(image)) as machine:
        machine.start()
        for command in ("reboot", "poweroff"):
            machine.console.wait_for(b"root@debian:~# ", 60)
            machine.console.send(command + "\n")
        assert machine.wait(60).code == 0


def test_a_named_overlay_keeps_what_was_written(image: BuiltImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    before = image.disk.stat().st_mtime_ns
    with running(image, overlay="work") as machine:
        told(machine, "echo kept >/srv/file")
    with running(image, overlay="work", hostname="meadow") as machine:
        assert told(machine, "cat /srv/file; hostname; grep -c meadow /etc/hosts").split() == ["kept", "meadow", "1"]
    assert [path.name for path in tmp_path.rglob("*.qcow2")] == ["debian-work.qcow2"]
    assert image.disk.stat().st_mtime_ns == before


def test_systemd(image: BuiltImage) -> None:
    with Machine(spec_of(image, init="systemd", hostname="prairie")) as machine:
        machine.start()
        machine.wait_ready()
        assert told(machine, "systemctl is-system-running --wait") == "running"
        assert told(machine, "cat /proc/1/comm; systemctl is-active ringfence-agent") == "systemd\nactive"
        machine.console.wait_for(b"root@prairie:~# ", 60)
        machine.console.send("poweroff\n")
        assert machine.wait(60).code == 0
