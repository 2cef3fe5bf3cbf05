"""Damages an image again and again and reads it each time: `python -m tests.unit.backends.foreign_fuzz KIND COUNT SEED FOLDER`.

A process of its own, so that its memory can be limited: what it may use beyond what it has at the beginning is LIMIT_BYTES of address
space, and an attempt that takes longer than a second, or ends in anything but data or a UserError, ends the process.  Every tenth image
is converted, to each format in turn; the others are read from beginning to end.  Prints a line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ringfence.backends.block.foreign.window import crc32c
from ringfence.core.errors import UserError
from ringfence.images.convert import TARGET_FORMATS, convert, disk_digest
from tests.unit.backends import foreign_images as images
from tests.unit.backends.foreign_images import Image

LIMIT_BYTES = 192 << 20
SLOWEST_S = 1.0
_STUCK_S = 20


def qcow2(folder: Path) -> Image:
    raw, path = folder / "seed.raw", folder / "seed.qcow2"
    raw.write_bytes(images.noise(8 << 10) + bytes(8 << 10) + images.noise(64) * 128)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", "-c", "-o", "cluster_size=512", raw, path], check=True)
    data = path.read_bytes()
    (l1,) = struct.unpack_from(">Q", data, 40)
    (l2,) = struct.unpack_from(">Q", data, l1)
    return Image(data, raw.read_bytes(), [(0, 112), (0, 112), (l1, 8), (l2 & 0xFFFFFFFFFFFE00, 512)], big_endian=True)


KINDS: dict[str, tuple[str, Callable[[], Image]]] = {
    "vdi": ("vdi", images.vdi),
    "vhd dynamic": ("vhd", images.vhd_dynamic),
    "vhd fixed": ("vhd", images.vhd_fixed),
    "vhdx": ("vhdx", lambda: images.vhdx(crc32c)),
    "vmdk sparse": ("vmdk", images.vmdk_sparse),
    "vmdk stream": ("vmdk", images.vmdk_stream),
    "vmdk flat": ("vmdk", images.vmdk_flat),
    "ova": ("ova", images.ova),
    "qcow2": ("qcow2", lambda: qcow2(Path(sys.argv[4]))),
}
_WORDS = [
    b"../../etc/passwd", b"/dev/zero", b"..", b"%s%s%n", b"\0", b"\xff\xfe", b"9999999999999999999", b"-1", b"0", b'"', b"\n", b"<", b">",
    b"&#0;",
    b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"RW 1 FLAT \"disk.image\" 0\n", b"RW 9223372036854775807 ZERO\n", b"parentCID=0\n", b" ",
    b"encoding=\"utf-7\"",
]  # fmt: skip


class Work:
    """An image in memory and in a file, and what was changed in both."""

    def __init__(self, image: Image, path: Path) -> None:
        self.image, self.path = image, path
        self.data = bytearray(image.data)
        self._touched: list[tuple[int, int]] = []
        path.write_bytes(image.data)
        self._fd = os.open(path, os.O_RDWR)

    def put(self, at: int, new: bytes) -> None:
        new = new[: max(0, len(self.data) - at)]
        self.data[at : at + len(new)] = new
        self._touched.append((at, len(new)))

    def apply(self, end: int | None) -> None:
        for at, size_bytes in self._touched:
            os.pwrite(self._fd, self.data[at : at + size_bytes], at)
        if end is not None:
            os.ftruncate(self._fd, end)

    def restore(self, end: int | None) -> None:
        original = self.image.data
        for at, size_bytes in self._touched:
            self.data[at : at + size_bytes] = original[at : at + size_bytes]
            os.pwrite(self._fd, original[at : at + size_bytes], at)
        if end is not None:
            os.ftruncate(self._fd, min(end, len(original)))
            os.pwrite(self._fd, original[end:], end)
        self._touched.clear()


def mutate(work: Work, draw: random.Random) -> int | None:
    """Changes the image; returns the length to cut it (or let it grow) to."""
    image = work.image
    if image.text is not None and draw.random() < 0.4:
        at, size_bytes = image.text
        for _ in range(draw.randrange(1, 4)):
            place = at + draw.randrange(size_bytes)
            if draw.random() < 0.5:
                work.put(place, draw.choice(_WORDS))
            else:  # a part of it once more, elsewhere
                other = at + draw.randrange(size_bytes)
                work.put(place, bytes(work.data[other : min(other + draw.randrange(1, 60), at + size_bytes)]))
    else:
        for _ in range(draw.randrange(1, 4)):
            offset, size_bytes = draw.choice(image.places)
            _damage(work, offset, size_bytes, draw)
    if draw.random() < 0.8:
        image.mend(work.data, work.put)
    if draw.random() < 0.05:
        return draw.randrange(len(image.data) + 5000)
    return None


def _damage(work: Work, offset: int, size_bytes: int, draw: random.Random) -> None:
    order = ">" if work.image.big_endian else "<"
    at = offset + draw.randrange(size_bytes)
    file_bytes = len(work.image.data)
    small = draw.choice([0, 1, draw.randrange(file_bytes), draw.randrange(file_bytes) // 512, draw.randrange(40)])
    match draw.randrange(7):
        case 0:
            work.put(at, bytes([work.data[min(at, file_bytes - 1)] ^ 1 << draw.randrange(8)]))
        case 1:
            work.put(at, bytes([draw.randrange(256)]))
        case 2:
            work.put(at & ~7, draw.choice([bytes(8), b"\xff" * 8, draw.randbytes(8)]))
        case 3:
            work.put(at & ~3, struct.pack(order + "I", small))
        case 4:
            work.put(at & ~7, struct.pack(order + "Q", draw.choice([small, 1 << 62, 1 << 46, 1 << 40, (1 << 63) - 1])))
        case 5:
            work.put(
                at & ~3, struct.pack(order + "I", draw.choice([0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, 1 << draw.randrange(32)]))
            )
        case _:
            other, other_bytes = draw.choice(work.image.places)
            work.put(at, bytes(work.data[other : other + draw.randrange(1, other_bytes + 1)])[: offset + size_bytes - at])


def attempt(path: Path, format: str, number: int, target: Path) -> bool:
    """Whether the image could be read; every other format is recognised rather than told."""
    told = format if number % 2 else None
    try:
        if number % 10:
            disk_digest(path, told)
        else:
            convert(path, target, TARGET_FORMATS[number // 10 % len(TARGET_FORMATS)], source_format=told)
    except UserError:
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            target.unlink()
    return True


def main() -> None:
    kind, count, seed, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    format, make = KINDS[kind]
    path, target = folder / "disk.image", folder / "converted"
    (folder / "disk-flat.vmdk").write_bytes(images.FLAT)
    work = Work(make(), path)
    for number in (0, 10, 20, 30, 1, 2):  # loads all modules before memory is limited
        assert attempt(path, format, number, target), kind
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_BYTES, used + LIMIT_BYTES))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read, slowest, slowest_number = 0, 0.0, -1
    expected = sorted(os.listdir(folder))
    for number in range(count):
        draw = random.Random(f"{kind} {seed} {number}")
        end = mutate(work, draw)
        work.apply(end)
        signal.alarm(_STUCK_S)  # kills the process
        begun = time.monotonic()
        try:
            read += attempt(path, format, number, target)
        except BaseException:
            shutil.copy(path, folder / "culprit")
            print(f"{kind}, seed {seed}, number {number}: kept as {folder / 'culprit'}", file=sys.stderr)
            raise
        took = time.monotonic() - begun
        signal.alarm(0)
        if took > slowest:
            slowest, slowest_number = took, number
        assert sorted(os.listdir(folder)) == expected, f"number {number} left something behind"
        work.restore(end)
    assert path.read_bytes() == work.image.data and attempt(path, format, 1, target), "the image was not restored"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"kind": kind, "count": count, "read": read, "slowest_s": slowest, "slowest": slowest_number, "grown_kib": grown}))


if __name__ == "__main__":
    main()
