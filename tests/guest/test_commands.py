"""Commands in a real guest: one for a machine of its own, many on one machine, their streams, ends and signals, and copies."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ringfence import CommandTimeout, DiskSpec, GuestGone, Machine, MachineSpec
from ringfence.images import alpine
from ringfence.machine.control import ControlSocket
from tests.guest.guests import alpine_files, alpine_python_path
from tests.guest.session import REPOSITORY

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

CALLS, AT_ONCE = 1000, 20
NAME = "commands"


def environment(runtime: Path) -> dict[str, str]:
    paths = [str(REPOSITORY), *filter(None, alpine_python_path().values())]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "RINGFENCE_RUNTIME": str(runtime)}


def ringfence(runtime: Path, *words: str, stdin: bytes = b"", timeout_s: float = 120) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "ringfence", *words]
    return subprocess.run(command, input=stdin, capture_output=True, env=environment(runtime), timeout=timeout_s, check=False)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def machine(runtime: Path) -> Iterator[Machine]:
    """An Alpine for all tests that use one of this process's, with its control socket."""
    alpine_files()
    recipe = alpine.recipe(init="agent")
    disk = DiskSpec(path=recipe.disk, format="qcow2", snapshot=True)
    spec = MachineSpec(kernel=recipe.kernel, initrd=recipe.initrd, append=recipe.append, disks=(disk,), devices=("agent",), name=NAME)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RINGFENCE_RUNTIME", str(runtime))
        with Machine(spec) as made:
            made.start()
            control = ControlSocket(made)
            made.wait_ready()
            yield made
            control.close()
            made.switch_off()
            assert made.wait(60).code == 0


def test_a_machine_for_one_command(runtime: Path) -> None:
    alpine_files()
    done = ringfence(runtime, "run", "alpine", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")


def test_three_megabytes_of_input(runtime: Path) -> None:
    alpine_files()
    data = random.Random(3).randbytes(3_000_000)
    done = ringfence(runtime, "run", "alpine", "--", "sha256sum", stdin=data)
    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest() and done.returncode == 0


def test_a_time_limit_of_the_machine_s(runtime: Path) -> None:
    alpine_files()
    done = ringfence(runtime, "run", "alpine", "--timeout", "20", "--", "sleep", "1000")
    assert done.returncode == 124, done.stderr


def test_a_command_that_switches_the_machine_off(runtime: Path) -> None:
    alpine_files()
    done = ringfence(runtime, "run", "alpine", "--", "poweroff", "-f")
    assert done.returncode == 125 and b"before the command did" in done.stderr and b"Traceback" not in done.stderr


def test_status_streams_and_words(machine: Machine) -> None:
    odd = ["a b", "x\ny", "it's", '"', "$HOME `id` \\", "", "ä☃", "-n"]
    result = machine.exec(
        ["sh", "-c", 'printf "<%s>" "$@"; printf "%s" "$A" >&2; pwd; exit 200', "sh", *odd], environment={"A": "1\n2"}, folder="/tmp"
    )
    assert result.stdout.decode() == "".join(f"<{word}>" for word in odd) + "/tmp\n"
    assert (result.stderr, result.status) == (b"1\n2", 200)


def test_programs_that_cannot_be_run(machine: Machine) -> None:
    assert machine.exec(["no-such-program"]).status == 127
    assert machine.exec(["/etc/passwd"]).status == 126
    assert machine.exec(["true"], folder="/nowhere").status == 126


def test_many_calls_at_once(machine: Machine) -> None:
    """None is lost or mixed up with another."""

    def call(k: int) -> None:
        words = ["sh", "-c", f"read a; echo $a-{k}; echo e{k} >&2; exit {k % 100}"]
        result = machine.exec(words, stdin=f"in{k}\n".encode(), timeout_s=120)
        assert (result.status, result.stdout, result.stderr) == (k % 100, f"in{k}-{k}\n".encode(), f"e{k}\n".encode())

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(call, range(CALLS)))


def test_both_directions_at_once_and_back_pressure(machine: Machine) -> None:
    """A reader that comes late holds the guest up, and loses nothing."""
    data = random.Random(4).randbytes(8 << 20)
    with machine.popen(["cat"]) as process:
        writer = threading.Thread(target=lambda: (process.write(data), process.close_input()))  # type: ignore[func-returns-value]
        writer.start()
        time.sleep(0.5)
        assert writer.is_alive()  # what is on its way is bounded
        assert process.stdout.read() == data
        assert process.wait(60) == 0


def test_output_that_is_read_after_the_command_has_ended(machine: Machine) -> None:
    """Some of it still lies in the guest's buffers then."""
    with machine.popen(["dd", "if=/dev/zero", "bs=64k", "count=24"]) as process:
        time.sleep(2)
        assert len(process.stdout.read()) == 24 << 16 and process.wait(30) == 0


def test_an_input_that_is_not_read(machine: Machine) -> None:
    assert machine.exec(["true"], stdin=bytes(20 << 20), timeout_s=60).status == 0


def test_a_command_that_takes_too_long_is_killed_in_the_guest(machine: Machine) -> None:
    with pytest.raises(CommandTimeout) as error:
        machine.exec(["sh", "-c", "echo begun; sleep 4242 & sleep 4243"], timeout_s=1)
    assert error.value.stdout == b"begun\n"
    assert b"424" not in machine.exec(["ps"]).stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1])
def test_signals(machine: Machine, number: signal.Signals) -> None:
    with machine.popen(["sh", "-c", "echo there; sleep 1000"]) as process:
        assert process.stdout.next(30) == b"there\n"
        process.kill(number)
        assert process.wait(30) == 128 + number


def test_what_a_command_leaves_running_does_not_hold_it_up(machine: Machine) -> None:
    result = machine.exec(["sh", "-c", "(sleep 3; echo late) & echo done"], timeout_s=2.5)
    assert result.stdout == b"done\n"
    for _ in range(AT_ONCE + 5):  # nor reach the streams of later ones
        assert machine.exec(["echo", "mine"]).stdout == b"mine\n"


def test_for_asyncio(machine: Machine) -> None:
    async def both() -> list[bytes]:
        results = await asyncio.gather(*(machine.aexec(["echo", str(k)]) for k in range(5)))
        return [result.stdout for result in results]

    assert asyncio.run(both()) == [b"%d\n" % k for k in range(5)]


def test_exec_from_another_process(machine: Machine, runtime: Path) -> None:
    done = ringfence(runtime, "exec", NAME, "--env", "A=5", "--workdir", "/tmp", "--", "sh", "-c", "pwd; echo $A; cat; exit 3", stdin=b"in")
    assert (done.returncode, done.stdout) == (3, b"/tmp\n5\nin"), done.stderr
    done = ringfence(runtime, "exec", "nobody", "--", "true")
    assert done.returncode == 125 and b"nobody" in done.stderr and b"Traceback" not in done.stderr


def test_an_interrupt_reaches_the_command(machine: Machine, runtime: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "ringfence",
        "exec",
        NAME,
        "--",
        "sh",
        "-c",
        "trap 'echo caught; exit 9' INT; echo there; while :; do sleep 0.1; done",
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(runtime)) as process:
        assert process.stdout is not None and process.stdout.readline() == b"there\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == b"caught\n"
        assert process.wait(30) == 9


def test_a_client_that_goes_away_takes_its_command_along(machine: Machine, runtime: Path) -> None:
    command = [sys.executable, "-m", "ringfence", "exec", NAME, "--", "sh", "-c", "echo there; exec sleep 5151"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(runtime)) as process:
        assert process.stdout is not None and process.stdout.readline() == b"there\n"
        process.kill()
    deadline = time.monotonic() + 30
    while b"5151" in machine.exec(["ps"]).stdout:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_copies(machine: Machine, runtime: Path, tmp_path: Path) -> None:
    """Both ways, by `cp` and by the machine's methods: contents, modes and links."""
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "noise").write_bytes(random.Random(5).randbytes(20_000_000))
    (tree / "deep" / "noise").chmod(0o741)
    (tree / "link").symlink_to("deep/noise")
    os.link(tree / "deep" / "noise", tree / "hard")
    done = ringfence(runtime, "cp", str(tree), f"{NAME}:/srv")
    assert done.returncode == 0, done.stderr
    listed = machine.exec(["sh", "-c", "cd /srv/tree; stat -c '%a %h' deep/noise; readlink link; sha256sum hard"]).stdout.decode().split()
    assert listed[:3] == ["741", "2", "deep/noise"]
    assert listed[3] == hashlib.sha256((tree / "hard").read_bytes()).hexdigest()
    done = ringfence(runtime, "cp", f"{NAME}:/srv/tree", str(tmp_path / "back"))
    assert done.returncode == 0, done.stderr
    back = tmp_path / "back"
    assert (back / "hard").read_bytes() == (tree / "hard").read_bytes() and (back / "hard").stat().st_nlink == 2
    assert (back / "deep" / "noise").stat().st_mode & 0o7777 == 0o741 and os.readlink(back / "link") == "deep/noise"
    (tmp_path / "small").write_text("small")
    machine.put(tmp_path / "small", "/srv/renamed")
    machine.get("/srv/renamed", tmp_path)
    assert (tmp_path / "renamed").read_text() == "small"
    done = ringfence(runtime, "cp", f"{NAME}:/etc/nothing", str(tmp_path))
    assert done.returncode == 125 and b"No such file" in done.stderr


def test_the_agent_comes_back(machine: Machine) -> None:
    """Whoever kills it in the guest loses the commands that run, no more."""
    with machine.popen(["sh", "-c", "kill $(pgrep -o -f ringfence/agent); sleep 1000"]) as process, pytest.raises(GuestGone):
        process.wait(30)
    machine.exec(["sh", "-c", "kill -9 $(pgrep -x sleep)"], timeout_s=60)
    assert machine.exec(["echo", "again"], timeout_s=60).stdout == b"again\n"


def test_a_machine_that_ends_ends_its_commands(runtime: Path) -> None:
    alpine_files()
    recipe = alpine.recipe(init="agent")
    disk = DiskSpec(path=recipe.disk, format="qcow2", snapshot=True)
    spec = MachineSpec(kernel=recipe.kernel, initrd=recipe.initrd, append=recipe.append, disks=(disk,), devices=("agent",))
    with Machine(spec) as machine:
        machine.start()
        process = machine.popen(["sleep", "1000"])
        machine.stop()
        with pytest.raises(GuestGone):
            process.wait(30)
        with pytest.raises(GuestGone):
            machine.exec(["true"])


def test_a_call_is_quick(machine: Machine) -> None:
    """No target, a bound: it must not wait for anything that comes in steps of time."""
    times = []
    for _ in range(20):
        start = time.monotonic()
        machine.exec(["true"])
        times.append(time.monotonic() - start)
    assert statistics.median(times) < 0.5
