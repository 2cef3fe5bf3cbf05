"""NVMe: initialisation, admin commands, I/O by every layout of PRPs, interrupts, errors, snapshots, hostile drivers."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.core.errors import SnapshotError
from ringfence.devices import nvme_io
from ringfence.devices.nvme_queue import QUEUES, Command, CommandError, prp_ranges
from ringfence.memory.guest_memory import GuestMemory
from tests.unit.devices.nvme_driver import ADMIN_SQ, BUFFERS, IO_CQ, IO_SQ, LISTS, RAM_BYTES, NvmeDriver
from tests.unit.virtio.driver import Disk

DNR = 0x4000
PAGE = 4096


def pattern(disk: Disk) -> None:
    disk.data[:] = random.Random(5).randbytes(disk.size_bytes)


# -- the controller ------------------------------------------------------------------------------------------------------


def test_capabilities_and_enabling() -> None:
    driver = NvmeDriver()
    cap = driver.get(0, 8)
    assert cap & 0xFFFF == 1023 and cap >> 16 & 1 and cap >> 37 & 1 and not cap >> 48
    assert driver.get(8) == 0x00010400
    assert driver.pci.read_config(3 << 3, 8, 4) >> 8 == 0x010802
    driver.enable()
    assert driver.get(0x28, 8) == ADMIN_SQ and driver.get(0x25, 1) == 0
    driver.put(0x14, 0)
    assert driver.get(0x1C) == 0 and driver.get(0x28, 8) == ADMIN_SQ
    driver.enable()


@pytest.mark.parametrize(("cc", "aqa"), [(0x11, 0x70007), (0x81, 0x70007), (0x801, 0x70007), (1, 0x70000), (1, 0)])
def test_an_invalid_configuration_is_fatal_until_it_is_reset(cc: int, aqa: int) -> None:
    driver = NvmeDriver()
    driver.put(0x24, aqa)
    driver.put(0x14, cc)
    assert driver.get(0x1C) == 2
    driver.doorbell(0, 1)
    driver.put(0x14, 0)
    assert driver.get(0x1C) == 0
    driver.enable()


def test_shutdown_flushes_first() -> None:
    driver = NvmeDriver().start()
    driver.put(0x14, driver.get(0x14) | 1 << 14)
    assert driver.get(0x1C) == 1 | 1 << 2
    driver.posted.run_one()
    assert driver.get(0x1C) == 1 | 2 << 2 and driver.disk.calls == ["flush"]
    driver.put(0x14, 0)
    driver.start()
    assert driver.get(0x1C) == 1


def test_the_admin_queue_wraps_and_phases_turn() -> None:
    driver = NvmeDriver()
    driver.enable()
    for _ in range(3 * driver.ADMIN_ENTRIES + 1):
        assert driver.admin(0x0A, 0x06).result == 1


def test_commands_wait_for_room_in_the_completion_queue() -> None:
    driver = NvmeDriver()
    driver.enable()
    for _ in range(7):
        driver.submit(0, 0x0A, 0x06)
    first = driver.collect(0, acknowledge=False)
    assert len(first) == 7  # one place of a ring stays free
    driver.submit(0, 0x0A, 0x06)
    assert driver.collect(0, acknowledge=False) == []
    driver.doorbell(0, 2, completion=True)
    assert len(driver.collect(0)) == 1


def test_identify() -> None:
    driver = NvmeDriver(Disk(3 << 20)).start()
    assert driver.admin(0x06, 1).status == 0
    data = driver.memory.read(BUFFERS, PAGE)
    assert data[4:24] == b"ringfence-nvme".ljust(20) and data[24:64].rstrip() == b"Ringfence NVMe"
    assert data[512:514] == b"\x66\x44" and struct.unpack_from("<I", data, 516) == (1,) and data[77] == 8 and data[111] == 1
    assert data[768:].startswith(b"nqn.2014.08.org.nvmexpress:1b36")
    assert driver.admin(0x06, 0, nsid=1).status == 0
    data = driver.memory.read(BUFFERS, PAGE)
    assert struct.unpack_from("<QQQ", data) == (6144, 6144, 6144) and data[128:132] == bytes((0, 0, 9, 0)) and data[99] == 0
    assert driver.admin(0x06, 2, nsid=0).status == 0
    assert driver.memory.read(BUFFERS, 8) == b"\1\0\0\0\0\0\0\0"
    assert driver.admin(0x06, 2, nsid=1).status == 0
    assert driver.memory.read(BUFFERS, 8) == bytes(8)
    assert driver.admin(0x06, 3, nsid=1, prp1=BUFFERS + 0x804, prp2=BUFFERS + PAGE).status == 0
    assert driver.memory.read(BUFFERS + 0x804, 6) == b"\x03\x10\0\0ri"
    for cns, nsid, status in ((0, 2, 0x0B), (3, 0, 0x0B), (2, 0xFFFFFFFF, 0x0B), (0x55, 1, 0x02)):
        assert driver.admin(0x06, cns, nsid=nsid).status == DNR | status


def test_features_keep_what_was_set() -> None:
    driver = NvmeDriver().start()
    for number, value in (
        (1, 0x01020304),
        (2, 0),
        (4, 0x0150),
        (4, 0x100110),
        (5, 7),
        (6, 0),
        (8, 0x0102),
        (9, 0x10003),
        (0x0A, 1),
        (0x0B, 0x1F),
    ):
        assert driver.admin(0x09, number, value).status == 0
        wanted = value & 0xFFFF if number == 4 else value
        assert driver.admin(0x0A, number, value).result == wanted, number
    assert driver.admin(0x0A, 7).result == 0x0007_0007
    for opcode, cdw10, cdw11, status in (
        (0x09, 7, 0x10001, 0x0C), (0x09, 0x80000006, 1, 0x10D), (0x09, 0x7F, 0, 2), (0x0A, 0x7F, 0, 2), (0x0A, 0x106, 0, 2),
        (0x09, 2, 1, 2), (0x09, 9, 99, 2), (0x0A, 9, 99, 2), (0x09, 4, 0x200000, 2),
    ):  # fmt: skip
        assert driver.admin(opcode, cdw10, cdw11).status == DNR | status


def test_log_pages() -> None:
    driver = NvmeDriver().start()
    driver.run(1, 2, 0, 0, 7)
    driver.run(1, 1, 8, 0, 0)
    assert driver.admin(0x02, 127 << 16 | 2).status == 0
    data = driver.memory.read(BUFFERS, 512)
    assert struct.unpack_from("<BH", data) == (0, 303) and data[3] == 100
    assert [int.from_bytes(data[at : at + 16], "little") for at in (32, 48, 64, 80)] == [1, 1, 1, 1]
    assert driver.admin(0x02, 127 << 16 | 3).status == 0 and driver.memory.read(BUFFERS, 1) == b"\1"
    assert driver.admin(0x02, 1 << 16 | 5, 0, 1024).status == 0  # from the I/O commands on
    assert driver.memory.read(BUFFERS, 8) == b"\1\0\0\0\3\0\0\0"
    assert driver.admin(0x02, 0x10000 | 0x77).status == DNR | 0x109
    assert driver.admin(0x02, 0x10000 | 2, 0, 3).status == DNR | 2
    assert driver.admin(0x02, 0xFFFF << 16 | 2, 0xFFFF).status == 0  # 16 GiB asked, one page given


def test_queue_management() -> None:
    driver = NvmeDriver().start()
    size = driver.IO_ENTRIES - 1 << 16
    for opcode, cdw10, cdw11, prp1, status in (
        (5, size | 1, 1, IO_CQ, 0x101),  # exists
        (5, size, 1, IO_CQ, 0x101),
        (5, size | QUEUES, 1, IO_CQ, 0x101),
        (5, size | 2, 0, IO_CQ, 2),
        (5, size | 2, 1, IO_CQ + 8, 2),
        (5, 2, 1, IO_CQ, 0x102),
        (5, 1024 << 16 | 2, 1, IO_CQ, 0x102),
        (5, size | 2, QUEUES << 16 | 3, IO_CQ, 0x108),
        (1, size | 2, 2 << 16 | 1, IO_SQ, 0x100),
        (1, size | 2, 1, IO_SQ, 0x100),
        (4, 1, 0, 0, 0x10C),
        (4, 2, 0, 0, 0x101),
        (0, 2, 0, 0, 0x101),
        (0, 0, 0, 0, 0x101),
    ):
        assert driver.admin(opcode, cdw10, cdw11, prp1=prp1).status == DNR | status, (opcode, hex(cdw10))
    for number in range(2, QUEUES):
        driver.create_io_queues(number, number)
        assert driver.run(number, 2, 0, 0, 0).status == 0
    assert driver.admin(0, 1).status == 0 and driver.admin(4, 1).status == 0
    driver.tails[1], driver.heads[1], driver.phases[1] = 0, 0, 1
    driver.memory.write(IO_CQ, bytes(PAGE))
    driver.create_io_queues()
    assert driver.run(1, 2, 0, 0, 0).status == 0


def test_a_deleted_queue_has_finished_its_commands_first() -> None:
    driver = NvmeDriver().start()
    driver.disk.gate.clear()
    driver.submit(1, 0)
    assert driver.collect(1) == []
    driver.disk.gate.set()
    assert driver.admin(0, 1).status == 0
    assert [c.status for c in driver.collect(1)] == [0]


def test_unknown_commands_and_flags() -> None:
    driver = NvmeDriver().start()
    assert driver.admin(0x80).status == DNR | 1
    assert driver.run(1, 0x0D).status == DNR | 1
    assert driver.admin(0x06, 1, flags=0x40).status == DNR | 2  # scatter gather list
    assert driver.run(1, 2, flags=1).status == DNR | 2  # fused


# -- events --------------------------------------------------------------------------------------------------------------


def test_async_events_tell_of_invalid_doorbells_once() -> None:
    driver = NvmeDriver().start()
    first = driver.submit(0, 0x0C)
    assert driver.collect(0) == []
    driver.doorbell(5, 1)  # no such queue
    event = driver.collect(0)
    assert [(e.cid, e.status, e.result) for e in event] == [(first, 0, 0x00010000)]
    driver.submit(0, 0x0C)
    driver.doorbell(1, 999)
    assert driver.collect(0) == []  # masked until the log was read
    driver.admin(0x02, 15 << 16 | 0x8001)  # retained
    driver.doorbell(1, 999)
    assert driver.collect(0) == []
    driver.admin(0x02, 15 << 16 | 1)
    assert driver.memory.read_uint(BUFFERS, 8) == 3
    driver.doorbell(1, 999)
    assert [e.result for e in driver.collect(0)] == [0x00010100]


def test_an_event_waits_for_a_request() -> None:
    driver = NvmeDriver().start()
    driver.doorbell(1, 5, completion=True)  # more than there is to consume
    cid = driver.submit(0, 0x0C)
    assert [(e.cid, e.result) for e in driver.collect(0)] == [(cid, 0x00010100)]


def test_limits_and_aborts_of_event_requests() -> None:
    driver = NvmeDriver().start()
    cids = [driver.submit(0, 0x0C) for _ in range(4)]
    assert driver.admin(0x0C).status == DNR | 0x105
    assert driver.admin(0x08, 0x7777 << 16).result == 1
    driver.submit(0, 0x08, cids[1] << 16)
    found = driver.collect(0)
    assert {(e.cid, e.status, e.result) for e in found} == {(cids[1], 7, 0), (driver.cid, 0, 0)}
    assert driver.admin(0x08, cids[1] << 16).result == 1


# -- data ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [512, 4096, 4608, 8192, 65536, 262144, 262656, 1 << 20])
@pytest.mark.parametrize("offset", [0, 4, 0x800, 0xFFC])
@pytest.mark.parametrize("scattered", [False, True])
def test_every_layout_of_data(size: int, offset: int, scattered: bool) -> None:
    driver = NvmeDriver(Disk(4 << 20)).start()
    pattern(driver.disk)
    count = -(-(offset + size) // PAGE)
    numbers = list(range(count))
    if scattered:
        random.Random(size).shuffle(numbers)
    pages = [BUFFERS + PAGE * number for number in numbers]
    prp2 = pages[1] if count > 1 else 0
    if count > 2:  # the list begins near the end of a page, so that it goes on in a second one
        at = LISTS + PAGE - 16
        rest = pages[1:]
        if len(rest) > 2:
            driver.memory.write(at, struct.pack("<QQ", rest[0], LISTS + 2 * PAGE))
            driver.memory.write(LISTS + 2 * PAGE, b"".join(page.to_bytes(8, "little") for page in rest[1:]))
        else:
            driver.memory.write(at, b"".join(page.to_bytes(8, "little") for page in rest))
        prp2 = at
    done = driver.run(1, 2, 16, 0, size // 512 - 1, prp1=pages[0] + offset, prp2=prp2)
    assert done.status == 0
    data = b"".join(driver.memory.read(page, PAGE) for page in pages)
    assert data[offset : offset + size] == driver.disk.data[8192 : 8192 + size]
    assert not any(data[:offset]) and not any(data[offset + size :])
    assert driver.run(1, 1, 4096, 0, size // 512 - 1, prp1=pages[0] + offset, prp2=prp2).status == 0
    assert driver.disk.data[4096 * 512 : 4096 * 512 + size] == driver.disk.data[8192 : 8192 + size]
    assert driver.run(1, 5, 4096, 0, size // 512 - 1, prp1=pages[0] + offset, prp2=prp2).status == 0
    driver.disk.data[4096 * 512 + size - 1] ^= 1
    assert driver.run(1, 5, 4096, 0, size // 512 - 1, prp1=pages[0] + offset, prp2=prp2).status == DNR | 0x285


def test_small_transfers_are_done_at_once_and_large_ones_elsewhere() -> None:
    driver = NvmeDriver(Disk(4 << 20)).start()
    driver.submit(1, 1, 0, 0, 7)
    assert [c.status for c in driver.collect(1)] == [0]
    here = set(driver.disk.threads)
    driver.memory.write(LISTS, b"".join((BUFFERS + PAGE * k).to_bytes(8, "little") for k in range(1, 256)))
    driver.disk.gate.clear()
    driver.submit(1, 1, 0, 0, 2047, prp2=LISTS)
    driver.submit(1, 2, 0, 0, 0)  # behind the large one: in order
    assert driver.collect(1) == []
    driver.disk.gate.set()
    driver.posted.run_one()
    driver.posted.run_one()
    assert [c.status for c in driver.collect(1)] == [0, 0]
    assert driver.disk.threads > here


def test_flush_fua_and_a_write_cache_that_is_off() -> None:
    driver = NvmeDriver().start()
    assert driver.run(1, 0, nsid=0xFFFFFFFF).status == 0
    assert driver.run(1, 1, 0, 0, 1 << 30).status == 0
    assert driver.run(1, 2, 0, 0, 1 << 30).status == 0
    assert driver.disk.calls == ["flush", "write", "flush", "read"]
    driver.admin(0x09, 6, 0)
    assert driver.run(1, 1, 0, 0, 0).status == 0
    assert driver.disk.calls[4:] == ["write", "flush"]


def test_write_zeroes_and_dataset_management() -> None:
    driver = NvmeDriver().start()
    assert driver.run(1, 8, 8, 0, 7 | 1 << 25).status == 0
    assert driver.run(1, 8, 8, 0, 7).status == 0
    driver.memory.write(BUFFERS, struct.pack("<IIQIIQIIQ", 0, 16, 8, 0, 0, 0, 0, 1, 2047))
    assert driver.run(1, 9, 2, 4).status == 0
    assert driver.run(1, 9, 2, 3).status == 0  # hints only
    assert driver.disk.calls == [
        "write_zeroes 4096 4096 True",
        "write_zeroes 4096 4096 False",
        "discard 4096 8192",
        f"discard {2047 * 512} 512",
    ]
    driver.memory.write(BUFFERS, struct.pack("<IIQ", 0, 2, 2047))
    assert driver.run(1, 9, 0, 4).status == DNR | 0x80
    driver.memory.write(BUFFERS, b"\xff" * PAGE)
    assert driver.run(1, 9, 255, 4).status == DNR | 0x80


@pytest.mark.parametrize(
    ("opcode", "cdw", "arguments", "status"),
    [
        (2, (2048, 0, 0), {}, 0x80),
        (2, (2047, 0, 1), {}, 0x80),
        (1, (0, 1, 0), {}, 0x80),
        (2, (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFF), {}, 0x02),
        (8, (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFF), {}, 0x80),
        (2, (0, 0, 2048), {}, 0x02),
        (2, (0, 0, 0), {"nsid": 2}, 0x0B),
        (2, (0, 0, 0), {"nsid": 0xFFFFFFFF}, 0x0B),
        (2, (0, 0, 0), {"prp1": BUFFERS + 2}, 0x13),
        (2, (0, 0, 15), {"prp2": BUFFERS + 4}, 0x13),
        (2, (0, 0, 31), {"prp2": LISTS + 4}, 0x13),
        (2, (0, 0, 0), {"prp1": RAM_BYTES}, 0x04),
        (2, (0, 0, 15), {"prp2": RAM_BYTES}, 0x04),
        (2, (0, 0, 31), {"prp2": RAM_BYTES - 8}, 0x04),
        (1, (0, 0, 0), {"prp1": (1 << 64) - 512}, 0x04),
        (9, (255, 4), {"prp1": RAM_BYTES}, 0x04),
    ],
)
def test_commands_that_cannot_be(opcode: int, cdw: tuple[int, ...], arguments: dict[str, int], status: int) -> None:
    driver = NvmeDriver().start()
    if arguments.get("prp2") == RAM_BYTES - 8:
        driver.memory.write(RAM_BYTES - 8, RAM_BYTES.to_bytes(8, "little"))
    assert driver.run(1, opcode, *cdw, **arguments).status == DNR | status
    assert not any(driver.disk.data)


def test_lists_that_lead_to_themselves_come_to_an_end() -> None:
    memory = GuestMemory()
    memory.add_ram(0, 1 << 20)
    memory.write(0x1000, (0x1000).to_bytes(8, "little") * 512)
    command = Command.unpack(struct.pack("<BBHI16xQQ6I", 2, 0, 0, 1, 0x2000, 0x1FF8, 0, 0, 0, 0, 0, 0))
    ranges = prp_ranges(memory, command, 1 << 20)
    assert sum(size for _, size in ranges) == 1 << 20 and len(ranges) == 256
    memory.write(0x1FF8, (0x1FF8).to_bytes(8, "little"))  # a second list must begin a page
    with pytest.raises(CommandError):
        prp_ranges(memory, command, 1 << 20)


def test_readonly_disks_say_so() -> None:
    driver = NvmeDriver(Disk(readonly=True)).start()
    driver.admin(0x06, 0, nsid=1)
    assert driver.memory.read(BUFFERS + 99, 1) == b"\1"
    for opcode in (1, 8, 9):
        assert driver.run(1, opcode, 0, 0, 0).status == DNR | 0x20
    assert driver.run(1, 2, 0, 0, 0).status == 0 and driver.run(1, 0).status == 0


@pytest.mark.parametrize(("error", "write"), [(OSError(5, "io"), 0x280), (OSError(28, "full"), 0x81)])
def test_errors_of_the_host(error: OSError, write: int) -> None:
    driver = NvmeDriver().start()
    driver.disk.error = error
    assert driver.run(1, 1, 0, 0, 0).status == DNR | write
    assert driver.run(1, 0).status == DNR | write
    if error.errno == 5:
        assert driver.run(1, 2, 0, 0, 0).status == DNR | 0x281
        assert driver.run(1, 2, 0, 0, 15, prp2=LISTS).status == DNR | 0x281


# -- interrupts ----------------------------------------------------------------------------------------------------------


def test_msix_vectors_of_queues() -> None:
    driver = NvmeDriver()
    driver.enable_msix()
    driver.start()
    assert set(driver.messages.sent) == {(0xFEE0_0000, 0x4000)}
    driver.create_io_queues(2, vector=7)
    driver.create_io_queues(3, vector=5, interrupts=False)
    driver.messages.sent.clear()
    driver.run(2, 2, 0, 0, 0)
    driver.run(3, 2, 0, 0, 0)
    assert driver.messages.sent == [(0xFEE0_0000, 0x4007)]
    for _ in range(5):
        driver.submit(1, 2, 0, 0, 0, ring=False)
    driver.doorbell(1, driver.tails[1])
    assert driver.messages.sent[1:] == [(0xFEE0_0000, 0x4001)]  # one for all five
    assert not driver.line.level


def test_the_pin_follows_queues_and_masks() -> None:
    driver = NvmeDriver().start()
    assert not driver.line.level
    driver.submit(1, 2, 0, 0, 0)
    assert driver.line.level
    driver.put(0x0C, 2)
    assert not driver.line.level and driver.get(0x0C) == 2
    driver.put(0x10, 2)
    assert driver.line.level
    driver.collect(1)
    assert not driver.line.level
    driver.submit(1, 2, 0, 0, 0)
    driver.enable_msix()
    assert not driver.line.level
    driver.nvme.reset()
    assert not driver.line.level


# -- life ----------------------------------------------------------------------------------------------------------------


def test_a_snapshot_goes_on_where_it_was() -> None:
    driver = NvmeDriver().start()
    driver.submit(0, 0x0C)
    driver.run(1, 1, 0, 0, 0)
    driver.disk.gate.clear()
    driver.submit(1, 0)
    driver.disk.gate.set()
    driver.nvme.pause()
    driver.submit(1, 2, 0, 0, 0)  # stays in the queue
    saved = driver.nvme.save()
    other = NvmeDriver()
    other.memory.write(0, driver.memory.read(0, RAM_BYTES))
    other.nvme.load(saved)
    assert other.nvme.save() == saved
    other.tails, other.heads, other.phases, other.cid = driver.tails, driver.heads, driver.phases, driver.cid
    assert [c.status for c in other.collect(1)] == [0]
    other.nvme.resume()
    assert [c.cid for c in other.collect(1)] == [driver.cid]
    assert other.run(1, 2, 0, 0, 0).status == 0
    for damaged in ({**saved, "submission": saved["submission"][1:]}, {k: v for k, v in saved.items() if k != "registers"}):
        with pytest.raises(SnapshotError):
            other.nvme.load(damaged)
    wild = [{**queue, "tail": 99} for queue in saved["submission"]]
    with pytest.raises(SnapshotError):
        other.nvme.load({**saved, "submission": wild})


def test_memory_for_data_under_way_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvme_io, "MAX_BYTES_IN_FLIGHT", 2 << 20)
    driver = NvmeDriver(Disk(4 << 20)).start()
    driver.memory.write(LISTS, b"".join((BUFFERS + PAGE * k).to_bytes(8, "little") for k in range(1, 256)))
    driver.disk.gate.clear()
    for _ in range(6):
        driver.submit(1, 2, 0, 0, 2047, prp2=LISTS, ring=False)
    driver.doorbell(1, driver.tails[1])
    assert driver.nvme.submission[1].head == 2
    driver.disk.gate.set()
    done = 0
    while done < 6:
        driver.posted.run_one()
        done += len(driver.collect(1))


def test_queues_outside_of_memory_are_fatal() -> None:
    for register in (0x28, 0x30):
        driver = NvmeDriver()
        driver.put(0x24, 0x70007)
        driver.put(0x28, ADMIN_SQ, 8)
        driver.put(0x30, 0x20000, 8)
        driver.put(register, 1 << 40, 8)
        driver.put(0x14, 4 << 20 | 6 << 16 | 1)
        driver.doorbell(0, 1)
        assert driver.get(0x1C) & 2
        driver.put(0x14, 0)
        driver.start()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_no_driver_upsets_it(seed: int) -> None:
    """Random registers, doorbells, queues and commands; then it works for a good driver."""
    rng = random.Random(seed)
    driver = NvmeDriver(Disk(1 << 16))
    if rng.random() < 0.5:
        driver.enable_msix()
    driver.start()
    for _ in range(60):
        match rng.randrange(6):
            case 0:
                driver.put(rng.randrange(0, 0x40, 4), rng.getrandbits(rng.choice((3, 8, 32))), rng.choice((1, 2, 4, 8)))
            case 1:
                driver.put(0x1000 + 4 * rng.randrange(24), rng.choice((rng.getrandbits(3), rng.getrandbits(16))))
            case 2:
                queue = rng.choice((0, 1))
                opcode = rng.choice((0, 1, 2, 4, 5, 6, 8, 9, 10, 12, rng.getrandbits(8)))
                words = [rng.choice((0, 1, 2, rng.getrandbits(4), rng.getrandbits(32))) for _ in range(6)]
                where = [rng.choice((BUFFERS, LISTS, rng.getrandbits(24) & ~7, rng.getrandbits(64))) for _ in range(2)]
                driver.tails[queue] %= driver.entries(queue)
                driver.submit(queue, opcode, *words, nsid=rng.choice((0, 1, 1, 9)), prp1=where[0], prp2=where[1])
            case 3:
                driver.memory.write(rng.choice((ADMIN_SQ, IO_SQ, LISTS)), rng.randbytes(256))
            case 4:
                driver.get(rng.randrange(0x2000), rng.choice((1, 2, 4, 8)))
            case _:
                driver.posted.run_all()
    driver.nvme.pause()
    driver.nvme.load(driver.nvme.save())
    driver.nvme.resume()
    driver.posted.run_all()
    driver.nvme.reset()
    driver.posted.run_all()
    driver.start()
    assert driver.run(1, 2, 0, 0, 0).status == 0
    driver.nvme.pause()
