"""Images of other programs: what is in them, and what is refused, by images made by hand from the specifications."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import time
import tracemalloc
from pathlib import Path

import pytest

from ringfence.backends.block.foreign.open import detect, open_source
from ringfence.backends.block.foreign.window import Window, crc32c
from ringfence.backends.block.hostfile import HostFile
from ringfence.core.errors import ImageError, UserError
from tests.unit.backends import foreign_images as images
from tests.unit.backends.foreign_images import MIB, SECTOR, Image
from tests.unit.backends.qemu import needs_qemu_img, qemu_img

BY_HAND = {
    "vdi": images.vdi,
    "vdi fixed": lambda: images.vdi(2, entries=[1, 0xFFFFFFFF, 0xFFFFFFFE, 0]),
    "vhd dynamic": images.vhd_dynamic,
    "vhd fixed": images.vhd_fixed,
    "vhdx": images.vhdx,
    "vmdk sparse": images.vmdk_sparse,
    "vmdk stream": images.vmdk_stream,
    "vmdk flat": images.vmdk_flat,
    "ova": images.ova,
}


def put(image: Image, folder: Path) -> Path:
    path = folder / "disk.image"
    path.write_bytes(image.data)
    (folder / "disk-flat.vmdk").write_bytes(images.FLAT)
    return path


def contents(path: Path, step: int = 64 << 10, **how: str) -> bytes:
    """The disk, read in steps."""
    source = open_source(path, **how)
    try:
        data = bytearray(source.size_bytes)
        for at in range(0, len(data), step):
            source.read(at, memoryview(data)[at : at + step])
        return bytes(data)
    finally:
        source.close()


def refused(path: Path, format: str | None = None, member: str | None = None) -> str:
    """The text of the error that opening or reading an image ends in."""
    with pytest.raises(UserError) as caught:
        source = open_source(path, format, member)
        try:
            for offset, size_bytes in source.data_ranges(0, source.size_bytes):
                source.read(offset, memoryview(bytearray(-(-size_bytes // SECTOR) * SECTOR)))
        finally:
            source.close()
    assert caught.value.remedy
    return caught.value.cause


@pytest.mark.parametrize("kind", BY_HAND)
@pytest.mark.parametrize("step", [SECTOR, 3 * SECTOR, 64 << 10])
def test_an_image_by_hand_is_read(kind: str, step: int, tmp_path: Path) -> None:
    image = BY_HAND[kind]()
    path = put(image, tmp_path)
    assert contents(path, step if kind != "vhdx" else step * 64) == image.disk
    assert contents(path, step * 64, format=kind.split()[0]) == image.disk


@pytest.mark.parametrize("kind", BY_HAND)
def test_what_lies_outside_of_the_data_ranges_is_zeroes(kind: str, tmp_path: Path) -> None:
    image = BY_HAND[kind]()
    source = open_source(put(image, tmp_path))
    try:
        rest, end = bytearray(image.disk), 0
        for offset, size_bytes in source.data_ranges(0, source.size_bytes):
            assert offset >= end and size_bytes > 0
            end = offset + size_bytes
            rest[offset:end] = bytes(size_bytes)
        assert len(rest) == source.size_bytes and not any(rest)
        if kind not in ("vhd fixed", "vmdk flat"):
            assert any(image.disk) and sum(size for _, size in source.data_ranges(0, source.size_bytes)) < source.size_bytes
    finally:
        source.close()


@needs_qemu_img
@pytest.mark.parametrize("kind", [kind for kind in BY_HAND if kind not in ("vdi", "vdi fixed", "vhd dynamic", "ova")])
def test_qemu_reads_the_images_by_hand_alike(kind: str, tmp_path: Path) -> None:
    """Besides OVA, which it does not know, sector bitmaps of a VHD, which it leaves out of account, and blocks of a VDI below 1 MiB."""
    image = BY_HAND[kind]()
    format = {"vhd": "vpc"}.get(kind.split()[0], kind.split()[0])
    if kind == "vmdk flat":
        image = images.vmdk_flat('RW 7 FLAT "disk-flat.vmdk" 0')
        image.disk = images.FLAT
        image.data = image.data.replace(b"twoGbMaxExtentFlat", b"monolithicFlat")
    path = put(image, tmp_path)
    qemu_img("convert", "-f", format, "-O", "raw", path, tmp_path / "by-qemu.raw")
    assert (tmp_path / "by-qemu.raw").read_bytes() == image.disk


def test_no_write_is_taken(tmp_path: Path) -> None:
    source = open_source(put(images.vdi(), tmp_path))
    assert getattr(source.block, "readonly")  # noqa: B009
    with pytest.raises(OSError, match="read-only"):
        source.block.write(0, memoryview(bytes(SECTOR)))  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="not whole sectors"):
        source.read(source.size_bytes, memoryview(bytearray(SECTOR)))
    source.close()


def test_a_footer_of_a_vhd_that_is_lost_is_found_at_the_beginning(tmp_path: Path) -> None:
    image = images.vhd_dynamic()
    image.data = image.data[:-SECTOR]
    assert contents(put(image, tmp_path)) == image.disk


def test_the_newer_valid_header_of_a_vhdx_counts(tmp_path: Path) -> None:
    image = images.vhdx(log=b"\1" * 16)
    assert "not closed properly" in refused(put(image, tmp_path))
    data = bytearray(image.data)
    data[(64 << 10) + 8] = 1  # a first header that is damaged changes nothing
    image.data = bytes(data)
    assert "not closed properly" in refused(put(image, tmp_path))
    data[(128 << 10) + 8] = 1
    image.data = bytes(data)
    assert "neither of its headers" in refused(put(image, tmp_path))


@pytest.mark.parametrize("size_bytes", [0, 1, 4, 80, 4096])
def test_crc32c(size_bytes: int) -> None:
    data = images.noise(size_bytes) + bytes(size_bytes * 3)
    assert crc32c(data) == images.crc32c_by_bits(data)
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720, B.4, and every catalogue of checksums


def test_formats_are_recognised(tmp_path: Path) -> None:
    for kind, make in BY_HAND.items():
        path = put(make(), tmp_path)
        file = HostFile.open(path, readonly=True)
        assert detect(Window(file)) == kind.split()[0]
        file.close()
    path.write_bytes(b"")
    assert "no size" in refused(path)
    path.write_bytes(bytes(1024))
    assert contents(path) == bytes(1024)
    assert "not a disk format" in refused(path, "vhdy")
    assert "not an archive" in refused(path, member="a")


@pytest.mark.parametrize("kind", BY_HAND)
def test_a_wrong_format_is_refused(kind: str, tmp_path: Path) -> None:
    path = put(BY_HAND[kind](), tmp_path)
    for format in ("vmdk", "vdi", "vhd", "vhdx", "ova", "qcow2"):
        if format != kind.split()[0]:
            refused(path, format)


@pytest.mark.parametrize("kind", [kind for kind in BY_HAND if kind != "vmdk flat"])
def test_a_cut_image_is_refused(kind: str, tmp_path: Path) -> None:
    image = BY_HAND[kind]()
    data = image.data
    cut = {"vhd fixed": 3 * SECTOR, "vmdk stream": 2 * SECTOR, "ova": 4096, "vhdx": MIB + 600}.get(kind, 1100)
    for size_bytes in (len(data) - cut, len(data) // 2, 700, 100):
        image.data = data[:size_bytes]
        refused(put(image, tmp_path), kind.split()[0])


# --- images with a parent, and others that are not supported ---


def test_images_with_a_parent_are_refused(tmp_path: Path) -> None:
    text = images.DESCRIPTOR.format(kind="monolithicSparse", extents="").replace("parentCID=ffffffff", "parentCID=00000001")
    for image in (
        images.vdi(4), images.vdi(parent=b"\1" * 16), images.vhd_dynamic(4), images.vhd_fixed(4), images.vhdx(flags=2),
        images.vmdk_sparse(text=text),
    ):  # fmt: skip
        assert "changes to another image" in refused(put(image, tmp_path))


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    assert "partially present" in refused(put(images.vhdx(states=(7, 0, 0)), tmp_path))
    assert "unknown metadata" in refused(put(images.vhdx(unknown_item=True), tmp_path))
    assert "an image type of 9" in refused(put(images.vdi(9), tmp_path))
    path = tmp_path / "esx.vmdk"
    path.write_bytes(b"COWD".ljust(2048, b"\0"))
    assert "ESX" in refused(path)
    for extent in ('RW 4 VMFSSPARSE "disk-flat.vmdk"', 'RW 4 SESPARSE "disk-flat.vmdk"', 'RW 4 VMFSRDM "disk-flat.vmdk"'):
        assert "which is not supported" in refused(put(images.vmdk_flat(extent), tmp_path))
    assert "may not be read" in refused(put(images.vmdk_flat('NOACCESS 4 FLAT "disk-flat.vmdk" 0'), tmp_path))


@needs_qemu_img
def test_a_backing_file_is_read_only_where_the_format_is_told(tmp_path: Path) -> None:
    base, overlay = tmp_path / "base.raw", tmp_path / "overlay.qcow2"
    base.write_bytes(b"secret".ljust(64 << 10, b"."))
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", "raw", overlay)
    assert "overlay on the backing file" in refused(overlay)
    assert contents(overlay, format="qcow2") == base.read_bytes()


# --- hostile numbers ---


def test_huge_sizes_are_refused(tmp_path: Path) -> None:
    huge = 65 << 40
    for image in (
        images.vdi(disk_bytes=huge), images.vhd_dynamic(disk_bytes=huge), images.vhdx(disk_bytes=huge),
        images.vmdk_sparse(capacity=huge // 512),
        images.vmdk_stream(capacity=huge // 512), images.vmdk_flat(f"RW {huge // 512} ZERO"), images.vdi(disk_bytes=0),
    ):  # fmt: skip
        refused(put(image, tmp_path))
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        try:
            file.truncate(huge)
        except OSError:
            return  # the file system has no files of this size
    assert "up to 64 TiB" in refused(path)


def test_tables_larger_than_the_file_are_refused_without_being_read(tmp_path: Path) -> None:
    whole = 64 << 40
    tracemalloc.start()
    try:
        for image in (
            images.vdi(disk_bytes=whole), images.vhd_dynamic(disk_bytes=whole), images.vhdx(disk_bytes=whole),
            images.vmdk_sparse(capacity=whole // 512), images.vmdk_stream(capacity=whole // 512),
        ):  # fmt: skip
            path = put(image, tmp_path)
            del image
            tracemalloc.reset_peak()
            before, begun = tracemalloc.get_traced_memory()[0], time.monotonic()
            refused(path)
            assert tracemalloc.get_traced_memory()[1] - before < 4 * MIB and time.monotonic() - begun < 1
    finally:
        tracemalloc.stop()


def test_a_sparse_table_for_64_tib_is_read_in_little_time_and_memory(tmp_path: Path) -> None:
    """The largest disk of the format, with nothing on it: its table of 512 MiB is a hole."""
    blocks = 64 << 20
    table_bytes = -(-(blocks + blocks // 4096) * 8 // MIB) * MIB
    image = images.vhdx(crc32c, disk_bytes=64 << 40, states=(0,))
    data = bytearray(image.data)
    for offset in (192 << 10, 256 << 10):  # the table comes behind all else
        struct.pack_into("<QI", data, offset + 32, 6 * MIB, table_bytes)
    image.mend(data, lambda at, new: data.__setitem__(slice(at, at + len(new)), new))
    path = tmp_path / "large.vhdx"
    path.write_bytes(data)
    os.truncate(path, 6 * MIB + table_bytes)
    tracemalloc.start()
    try:
        begun = time.monotonic()
        source = open_source(path)
        assert source.size_bytes == 64 << 40 and not list(source.data_ranges(0, source.size_bytes))
        source.close()
        assert time.monotonic() - begun < 10 and tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()


def test_blocks_used_twice_are_refused(tmp_path: Path) -> None:
    """A small file cannot become a large disk: its tables may not point to the same data, or to one table, again and again."""
    assert "more than once" in refused(put(images.vdi(entries=[0] * 256, disk_bytes=256 * 4096), tmp_path))
    assert "more than once" in refused(put(images.vhd_dynamic(entries=[4] * 120, disk_bytes=120 * 4096), tmp_path))
    assert "more than once" in refused(put(images.vhdx(states=(3 << 20 | 6,) * 64, disk_bytes=64 * MIB), tmp_path))
    assert "more than once" in refused(put(images.vmdk_sparse(directory=[6] * 60, capacity=60 * 512 * 8), tmp_path))
    names = "\n".join(['RW 7 FLAT "disk-flat.vmdk" 0'] * 400)
    assert "more than once" in refused(put(images.vmdk_flat(names), tmp_path))


@needs_qemu_img
def test_clusters_of_a_qcow2_used_twice_are_refused(tmp_path: Path) -> None:
    raw, path = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    raw.write_bytes(images.noise(512) * 512)
    qemu_img("convert", "-O", "qcow2", "-o", "cluster_size=512", raw, path)
    data = bytearray(path.read_bytes())
    (l1,) = struct.unpack_from(">Q", data, 40)
    tables = [entry & 0x00FF_FFFF_FFFF_FE00 for (entry,) in struct.iter_unpack(">Q", data[l1 : l1 + 8 * 8])]
    (first,) = struct.unpack_from(">Q", data, tables[0])
    for table in tables:
        data[table : table + 512] = struct.pack(">Q", first) * 64
    path.write_bytes(data[: max(*tables, first & 0x00FF_FFFF_FFFF_FE00) + 512])
    assert "more than once" in refused(path)


def test_tables_that_are_data_and_themselves_end(tmp_path: Path) -> None:
    image = images.vmdk_sparse(directory=[5], table_at=5)  # the directory as its own table: its only grain is itself, past it are others
    path = put(image, tmp_path)
    source = open_source(path)
    ranges = list(source.data_ranges(0, source.size_bytes))
    source.close()
    assert ranges == [(0, 4096)]


# --- other files of the host ---


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "sub/secret", "..", ".", "sub\\secret"])
def test_extents_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path / "secret", folder / "sub" / "secret"):
        place.write_bytes(bytes(4096))
    for kind in ("FLAT", "SPARSE", "VMFS"):
        assert "only read from the folder" in refused(put(images.vmdk_flat(f'RW 4 {kind} "{name}" 0'), folder))


def test_extents_by_links_and_special_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    assert "symbolic link" in refused(put(images.vmdk_flat('RW 1 FLAT "link" 0'), tmp_path))
    assert "neither a regular file" in refused(put(images.vmdk_flat('RW 1 FLAT "pipe" 0'), tmp_path))
    assert "directory" in refused(put(images.vmdk_flat('RW 1 FLAT "folder" 0'), tmp_path))
    assert "does not exist" in refused(put(images.vmdk_flat('RW 1 FLAT "missing" 0'), tmp_path))
    assert "no signature" in refused(put(images.vmdk_flat('RW 1 SPARSE "disk.image"'), tmp_path))


def test_too_many_extents_are_refused(tmp_path: Path) -> None:
    assert "extents" in refused(put(images.vmdk_flat("RW 1 ZERO\n" * 600), tmp_path))


def test_an_image_changed_by_a_transfer_as_text_is_recognised(tmp_path: Path) -> None:
    image = images.vmdk_sparse()
    image.data = image.data.replace(b"\n \r\n", b"\n \n\n", 1)
    assert "line ends" in refused(put(image, tmp_path))


# --- OVA ---


def appliance(folder: Path, parts: list[tuple[str | tarfile.TarInfo, bytes]], format: int = tarfile.USTAR_FORMAT) -> Path:
    path = folder / "box.ova"
    path.write_bytes(images.tar(parts, format))
    return path


def test_of_several_disks_one_is_chosen_and_named(tmp_path: Path) -> None:
    first, second = images.vmdk_stream(), images.vmdk_sparse()
    path = appliance(tmp_path, [("box.ovf", images.ovf("b.vmdk", "a.vmdk").encode()), ("a.vmdk", second.data), ("b.vmdk", first.data)])
    source = open_source(path)
    assert source.kind == "streamOptimized"
    assert source.notes == (
        "The disk is b.vmdk; left out: a.vmdk.",
        "The archive has no manifest, so that its checksums could not be compared.",
    )
    source.close()
    assert contents(path) == first.disk
    assert contents(path, member="a.vmdk") == second.disk
    assert "no disk named" in refused(path, member="box.ovf")


@pytest.mark.parametrize("method", ["sha1", "sha256", "sha512"])
def test_a_manifest_is_compared(method: str, tmp_path: Path) -> None:
    disk = images.vmdk_stream()
    parts = {"box.ovf": images.ovf("box.vmdk").encode(), "box.vmdk": disk.data}
    path = appliance(tmp_path, [*parts.items(), ("box.mf", images.manifest(parts, method))])
    source = open_source(path)
    assert source.notes[-1] == f"Descriptor and disk have the {method.upper()} checksums of the manifest."
    source.close()
    for name in parts:
        changed = dict(parts)
        changed[name] = parts[name].replace(b"ffffffff" if name == "box.vmdk" else b"disks", b"fffffff0", 1)
        path = appliance(tmp_path, [*changed.items(), ("box.mf", images.manifest(parts, method))])
        assert "checksum of the manifest" in refused(path)
        path = appliance(tmp_path, [*parts.items(), ("box.mf", images.manifest({k: v for k, v in parts.items() if k != name}, method))])
        assert "does not name" in refused(path)
    assert "is not a checksum" in refused(appliance(tmp_path, [*parts.items(), ("box.mf", b"MD5(box.ovf)= 0\n")]))


@pytest.mark.parametrize("name", ["../escape", "/etc/cron.d/job", "a/../../b", "a\\..\\b", "a//b", "./../b", "new\nline"])
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    disk, text = images.vmdk_stream().data, images.ovf("box.vmdk").encode()
    for format in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = appliance(tmp_path, [("box.ovf", text), ("box.vmdk", disk), (name, b"x")], format)
        assert "leads elsewhere" in refused(path)
        assert os.listdir(tmp_path) == ["box.ova"]
    path = appliance(tmp_path, [("box.ovf", images.ovf(name.replace("\n", "&#10;")).encode()), ("box.vmdk", disk)])
    assert "not in the archive" in refused(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_an_archive_are_refused(kind: bytes, tmp_path: Path) -> None:
    link = tarfile.TarInfo("box.vmdk")
    link.type, link.linkname = kind, "/etc/passwd"
    assert "link or special file" in refused(appliance(tmp_path, [("box.ovf", images.ovf("box.vmdk").encode()), (link, b"")]))


def test_long_names_and_other_headers_are_read(tmp_path: Path) -> None:
    disk, name = images.vmdk_stream(), "folder/" + "long" * 40 + ".vmdk"
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = appliance(tmp_path, [("box.ovf", images.ovf(name).encode()), (name, disk.data)], format)
        assert contents(path) == disk.disk


def test_a_descriptor_cannot_expand_or_fetch(tmp_path: Path) -> None:
    disk = images.vmdk_stream().data
    for before in ('<!DOCTYPE a [<!ENTITY b "ccc">]>\n', '<!DOCTYPE a SYSTEM "file:///etc/passwd">\n'):
        path = appliance(tmp_path, [("box.ovf", images.ovf("box.vmdk", before=before).encode()), ("box.vmdk", disk)])
        assert "document type" in refused(path)
        text = images.ovf("box.vmdk", before=before).replace("UTF-8", "UTF-16").encode("utf-16")
        assert "document type" in refused(appliance(tmp_path, [("box.ovf", text), ("box.vmdk", disk)]))
    many = images.ovf(*[f"d{n}" for n in range(6000)]).encode()
    assert "too" in refused(appliance(tmp_path, [("box.ovf", many)]))
    assert "too large" in refused(appliance(tmp_path, [("box.ovf", b" " * (2 * MIB))]))


def test_other_appliances_are_refused(tmp_path: Path) -> None:
    disk = images.vmdk_stream().data
    assert "no OVF descriptor" in refused(appliance(tmp_path, [("box.vmdk", disk)]))
    assert "has no disk" in refused(appliance(tmp_path, [("box.ovf", images.ovf().encode())]))
    assert "compressed" in refused(appliance(tmp_path, [("box.ovf", images.ovf("a", file='ovf:compression="gzip"').encode()), ("a", disk)]))
    assert "split" in refused(appliance(tmp_path, [("box.ovf", images.ovf("a", file='ovf:chunkSize="9"').encode()), ("a", disk)]))
    assert "changes to another" in refused(
        appliance(tmp_path, [("box.ovf", images.ovf("a", disk='ovf:parentRef="b"').encode()), ("a", disk)])
    )
    assert "not XML" in refused(appliance(tmp_path, [("box.ovf", b"<a><b></a>"), ("a", disk)]))
    assert "two members" in refused(appliance(tmp_path, [("box.ovf", images.ovf("a").encode()), ("a", disk), ("a", disk)]))
    flat = images.vmdk_flat('RW 1 FLAT "box.ova" 0').data
    assert "needs other files" in refused(appliance(tmp_path, [("box.ovf", images.ovf("a").encode()), ("a", flat)]))
    assert "members" in refused(appliance(tmp_path, [(f"f{n}", b"") for n in range(1100)]))


def test_a_member_larger_than_the_archive_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("box.ovf")
    for kind, size_bytes in ((tarfile.REGTYPE, 1 << 62), (tarfile.GNUTYPE_LONGNAME, 1 << 40), (tarfile.XHDTYPE, 1 << 40)):
        member.size, member.type = size_bytes, kind
        path = tmp_path / "box.ova"
        path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
        refused(path)
    records = io.BytesIO()
    with tarfile.open(fileobj=records, mode="w", format=tarfile.PAX_FORMAT, pax_headers={}) as archive:
        member = tarfile.TarInfo("box.ovf")
        member.pax_headers = {"size": "9" * 30}
        archive.addfile(member, io.BytesIO())
    path.write_bytes(records.getvalue())
    assert "not a number" in refused(path)


def test_an_image_error_names_the_file(tmp_path: Path) -> None:
    path = put(images.vdi(9), tmp_path)
    with pytest.raises(ImageError, match=str(path)):
        open_source(path)
