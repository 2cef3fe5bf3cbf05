"""Cache files: found again, replaced whole, and as if they were not there when damaged, stale or not to be trusted."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from ringfence.core import cache_files
from ringfence.core.cache_files import read_cache, write_cache
from ringfence.isa.x86.context import Form
from ringfence.translate import image, native_tables, record_file
from ringfence.translate.code_memory import FIXED_START, CodeMemory
from ringfence.translate.native_layout import RECORDS as RECORDS_AT
from ringfence.translate.native_layout import SYMBOLS
from ringfence.translate.native_tables import NativeTables
from ringfence.translate.objects import Code, Linkable
from ringfence.translate.record_file import Records, open_records, write_records
from ringfence.translate.stencils import StencilStore

CODE = Code(b"\x90", ())
NATIVE: Linkable = (b"\xc3", (("f", 0),), ())
RECORDS = {b"name %d" % n: b"value %d" % n * n for n in range(300)}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("RINGFENCE_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was traced."""
    lines: list[str] = []

    def trace(text: str, *values: object) -> None:
        lines.append(text % values)

    monkeypatch.setattr(cache_files, "trace", trace)
    monkeypatch.setattr(record_file, "trace", trace)
    monkeypatch.setattr(native_tables, "trace", trace)
    return lines


def written(folder: Path) -> Path:
    path = folder / "kind-1.bin"
    assert write_records(path, RECORDS, True)
    return path


def test_records_are_found_and_nothing_else(folder: Path) -> None:
    records = Records(written(folder))
    assert records.complete
    assert {name: records.get(name) for name in RECORDS} == RECORDS == dict(records.items())
    assert records.get(b"name") is None and b"" not in records


def test_what_was_added_is_saved_beside_what_others_wrote(folder: Path) -> None:
    path = written(folder)
    one, other = Records(path), Records(path)
    one.added[b"one"], other.added[b"other"], other.added[b"name 1"] = b"1", b"2", b"new"
    assert one.save() and other.save()
    assert one.get(b"one") == b"1" and one.added == {}
    assert dict(Records(path).items()) == {**RECORDS, b"one": b"1", b"other": b"2", b"name 1": b"new"}
    assert Records(path).complete


def test_names_of_equal_checksum(folder: Path) -> None:
    names = [b"plumless", b"buckeroo"]  # crc32 4ddb0c25
    assert write_records(folder / "kind-2.bin", {name: name for name in names}, False)
    records = Records(folder / "kind-2.bin")
    assert [records.get(name) for name in names] == names and not records.complete


@pytest.mark.parametrize("at", [0, 9, 20, 26, 39])
def test_a_damaged_header_is_no_file(folder: Path, traced: list[str], at: int) -> None:
    path = written(folder)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert open_records(path) is None and len(traced) == 1 and "damaged" in traced[0]
    assert not Records(path).complete


@pytest.mark.parametrize("cut", [1, 10_000, None])
def test_a_file_cut_off_has_no_records(folder: Path, traced: list[str], cut: int | None) -> None:
    path = written(folder)
    path.write_bytes(path.read_bytes()[: record_file._HEADER_BYTES if cut is None else -cut])
    records = Records(path)
    assert records.get(b"name 1") is None and dict(records.items()) == {} and "damaged" in traced[0]
    records.added[b"new"] = b"1"
    assert records.save()
    assert not Records(path).complete, "what was lost has to be made again"


def test_a_damaged_record_is_missing_and_mended(folder: Path, traced: list[str]) -> None:
    path = written(folder)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"value 7value 7", b"value 7value 8"))
    records = Records(path)
    assert records.get(b"name 7") is None and records.get(b"name 8") == RECORDS[b"name 8"]
    assert "damaged" in traced[0]
    records.added[b"name 7"] = RECORDS[b"name 7"]
    assert records.save()
    assert dict(Records(path).items()) == RECORDS


@pytest.mark.parametrize("whose", ["file", "folder"])
def test_what_others_can_write_is_ignored(folder: Path, traced: list[str], whose: str) -> None:
    path = written(folder)
    assert write_cache(folder / "plain-1.bin", [1])
    for target in (folder,) if whose == "folder" else (path, folder / "plain-1.bin"):
        target.chmod(target.stat().st_mode | 0o020)
    assert open_records(path) is None and read_cache(folder / "plain-1.bin") is None
    assert len(traced) == 2 and "can be written by others" in traced[0]


def test_a_damaged_plain_cache_is_ignored(folder: Path, traced: list[str]) -> None:
    path = folder / "plain-1.bin"
    assert read_cache(path) is None and traced == []
    assert write_cache(path, {"a": (1, b"2")}) and read_cache(path) == {"a": (1, b"2")}
    path.write_bytes(path.read_bytes()[:-1])
    assert read_cache(path) is None and "damaged" in traced[0]


def test_nothing_is_left_where_nothing_can_be_written(folder: Path, traced: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(os, "replace", refuse)
    assert not write_cache(folder / "plain-1.bin", 1) and not write_records(folder / "kind-1.bin", RECORDS, True)
    assert list(folder.iterdir()) == [] and "not written" in traced[0]


def test_no_file_grows_beyond_its_bound(folder: Path, traced: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_files, "MAX_CACHE_BYTES", 100)
    assert not write_cache(folder / "plain-1.bin", bytes(100)) and "grow" in traced[0]


def test_the_store_finds_what_it_saved(folder: Path) -> None:
    store = StencilStore()
    store.add([("some form", CODE)])
    store.put_native("a native function", NATIVE)
    store.recipes.added[b"\0an encoding"] = b"a recipe"
    store.complete = store.recipes.complete = store.recipes_changed = True
    store.save()
    store.save_recipes()
    again = StencilStore()
    assert again.complete and again.recipes.complete
    assert again.find("some form") == CODE and again.names() == {"some form"}
    assert again.find_native("a native function") == NATIVE and again.find_native("some form") is None
    assert again.recipes.get(b"\0an encoding") == b"a recipe"


FORM = Form("nop", 64, ())


def fake_image(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An image without a compiler; notes where it is linked for."""
    linked: list[int] = []

    def link(store: StencilStore, base: int) -> image.Image:
        linked.append(base)
        return image.Image(base, b"\xc3" * 100, {"s_enter": base}, {FORM: base + 64})

    monkeypatch.setattr(image, "linking", SimpleNamespace(link=link))
    return linked


Damage = Callable[[Path], object]


@pytest.mark.parametrize(
    "damage",
    [
        None,
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.chmod(0o666),
        lambda path: write_cache(path, (FIXED_START + 64, b"", {}, {})),
    ],
)
def test_the_image_is_linked_once_unless_it_is_lost(folder: Path, monkeypatch: pytest.MonkeyPatch, damage: Damage | None) -> None:
    linked = fake_image(monkeypatch)
    monkeypatch.setattr(StencilStore, "built", True)
    for start in range(2):
        memory = CodeMemory(16)
        assert image.place_runtime(memory, StencilStore) == {"s_enter": FIXED_START}
        assert bytes(memory.code[FIXED_START : FIXED_START + 100]) == b"\xc3" * 100
        assert memory.natives[FORM] == FIXED_START + 64 and memory.fixed == FIXED_START + 100
        if damage is not None and start == 0:
            damage(image._path())
    assert linked == [FIXED_START] * (1 if damage is None else 2)


def test_an_image_of_half_a_cache_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    linked = fake_image(monkeypatch)
    for _ in range(2):
        image.place_runtime(CodeMemory(16), StencilStore)
    assert len(linked) == 2 and not image.ready()


def test_a_start_is_ready_while_all_files_are_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_image(monkeypatch)
    store = StencilStore()
    store.complete = store.recipes.complete = store.recipes_changed = True
    store.save(force=True)
    store.save_recipes()
    assert not image.ready()
    image.place_runtime(CodeMemory(16), StencilStore)
    assert image.ready()
    store.recipes.path.unlink()
    assert not image.ready()
    store.recipes.save()
    image.forget()
    assert not image.ready()


def tables(path: Path) -> NativeTables:
    """The tables of a machine whose run time is not there."""
    return NativeTables(CodeMemory(16), dict.fromkeys(SYMBOLS, 0), path)


@pytest.fixture
def learnt(folder: Path) -> Path:
    """A file of tables with a record of 5000 bytes and a literal."""
    path = folder / "blocks-1.bin"
    new = tables(path)
    at = new.base + new.end
    new.memory.state[at : at + 5000] = b"r" * 5000
    new.end += 5000
    new.last, new.count, new.changed, new.functions = RECORDS_AT, 7, True, {FORM: 1}
    assert new.literal(b"literal") == 0
    new.save()
    assert not new.changed
    return path


def test_tables_are_mapped_and_what_is_learnt_stays_with_the_machine(learnt: Path) -> None:
    one, other = tables(learnt), tables(learnt)
    for kept in (one, other):
        at = kept.base + RECORDS_AT
        assert (kept.end, kept.last, kept.count) == (RECORDS_AT + 5000, RECORDS_AT, 7)
        assert bytes(kept.memory.state[at : at + 5000]) == b"r" * 5000
        assert kept.functions == {FORM: 1} and kept.literals == {b"literal": 0}
    one.memory.state[one.base + one.end] = 1
    one.memory.state[one.base + RECORDS_AT] = 1
    assert other.memory.state[other.base + RECORDS_AT] == ord("r")
    assert tables(learnt).memory.state[one.base + RECORDS_AT] == ord("r")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:10],
        lambda data: data[:-1],
        lambda data: data + b"?",
        lambda data: b"X" + data[1:],
        lambda data: data[:30] + b"?" + data[31:],
        lambda data: data[:-600_000] + b"?" + data[-599_999:] if len(data) > 600_000 else data[:-1] + b"?",
    ],
)
def test_damaged_tables_are_ignored(learnt: Path, traced: list[str], damage: Callable[[bytes], bytes]) -> None:
    learnt.write_bytes(damage(learnt.read_bytes()))
    assert tables(learnt).count == 0
    assert len(traced) == 1 and "damaged" in traced[0]


def test_tables_that_others_can_write_are_ignored(learnt: Path, traced: list[str]) -> None:
    learnt.chmod(0o620)
    assert tables(learnt).count == 0
    assert "can be written by others" in traced[0]


def test_whoever_has_learnt_more_is_kept(learnt: Path) -> None:
    old, new = tables(learnt), tables(learnt)
    new.count, new.changed = 9, True
    new.save()
    old.count, old.changed = 8, True
    old.save()
    assert tables(learnt).count == 9
