"""A machine that has come to rest drops its translated code, and goes on as if nothing had been."""

from __future__ import annotations

import hashlib
import random
import time

import pytest

from ringfence import DiskSpec, Machine, MachineSpec
from ringfence.engine import emulate
from ringfence.images import alpine
from tests.guest.guests import alpine_files

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]


@pytest.mark.parametrize("cpus", [1, 2])
def test_what_runs_and_what_begins(cpus: int) -> None:
    """Among them a program that was in the middle of its work."""
    alpine_files()
    recipe = alpine.recipe(init="agent")
    disk = DiskSpec(path=recipe.disk, format="qcow2", snapshot=True)
    spec = MachineSpec(kernel=recipe.kernel, initrd=recipe.initrd, append=recipe.append, disks=(disk,), devices=("agent",), cpus=cpus)
    data = random.Random(cpus).randbytes(1 << 20)
    with Machine(spec) as machine:
        machine.start()
        with machine.popen(["sha256sum"]) as process:
            process.write(data)
            deadline = time.monotonic() + 60
            while not (figures := machine.stats()["engine"])["code_cache_rests"]:
                assert time.monotonic() < deadline, figures
                time.sleep(0.5)
            assert figures["code_bytes"] < emulate.REST_BYTES
            process.write(data)
            process.close_input()
            assert process.stdout.read().split()[0].decode() == hashlib.sha256(data * 2).hexdigest()
        for k in range(20):
            assert machine.exec(["sh", "-c", f"echo {k}"]).stdout == b"%d\n" % k
        machine.switch_off()
        assert machine.wait(60).code == 0
