"""The compiler's process, and the store of what it has made."""

from __future__ import annotations

import queue
from pathlib import Path

import pytest

from ringfence.isa.x86.modes import LONG
from ringfence.translate.region_compiler import Answer, CompiledRegion, Compiler, Request, compile_region
from ringfence.translate.region_store import RegionStore
from tests.differential.system_guest import assembled

SEED = 0x40
LOOP = "1: add rax, [rsi]\nadd rsi, 8\ndec ecx\njnz 1b\nhlt"


def request(text: str = LOOP, final: bool = True) -> Request:
    return Request({0: (bytes(SEED) + assembled(text)).ljust(4096, b"\xf4")}, SEED, LONG, 1, "x86-64-v2", final)


@pytest.fixture
def region() -> CompiledRegion:
    answer = compile_region(request())
    assert isinstance(answer, CompiledRegion)
    return answer


def test_what_is_compiled_says_what_it_was_made_from(region: CompiledRegion) -> None:
    code = assembled(LOOP)
    assert region.content == ((SEED, code[:-1]),) and region.entries == (SEED,) and region.pages == (0,)
    assert region.instructions == 4 and {name for name, _ in region.code[1]} >= {"entry0"}


def test_the_process_answers_in_order_and_starts_again_after_its_death() -> None:
    answers: queue.Queue[tuple[int, Answer]] = queue.Queue()
    compiler = Compiler(lambda number, answer: answers.put((number, answer)))
    try:
        compiler.submit(1, request())
        compiler.submit(2, request("hlt"))
        number, answer = answers.get(timeout=60)
        assert number == 1 and isinstance(answer, CompiledRegion)
        assert answers.get(timeout=60) == (2, None)
        assert compiler._process is not None
        compiler._process.kill()
        compiler._process.wait()
        compiler.submit(3, request())
        assert answers.get(timeout=60) == (3, None)  # the one that met the end
        compiler.submit(4, request())
        number, answer = answers.get(timeout=60)
        assert number == 4 and isinstance(answer, CompiledRegion) and compiler.started == 2
    finally:
        compiler.close()
    assert compiler._process is None


def test_missing_pages_are_asked_for() -> None:
    beyond = "1: test ecx, ecx\nje 3f\ndec ecx\njmp 1b\n.org 0x1800\n3: jmp 1b"
    page = (bytes(SEED) + assembled(beyond))[:4096]
    wanted = Request({0: page}, SEED, LONG, 1, "x86-64-v2", False)
    assert compile_region(wanted) == (1,)
    assert isinstance(compile_region(wanted._replace(final=True)), CompiledRegion)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("RINGFENCE_CACHE", str(folder))
    return folder


def found(store: RegionStore) -> list[tuple[CompiledRegion, int]]:
    return list(store.find(1, SEED, assembled(LOOP)[:16].ljust(16, b"\xf4")))


def test_a_region_is_kept_and_found_by_its_bytes(cache: Path, region: CompiledRegion) -> None:
    store = RegionStore("x86-64-v2", True)
    store.add(region)
    store.add(region)
    assert len(store) == 1
    store.save()
    later = RegionStore("x86-64-v2", True)
    assert found(later) == [(region, 0)]
    assert not list(later.find(0, SEED, assembled(LOOP)[:16]))  # of another translation mode
    assert not list(later.find(1, SEED + 1, assembled(LOOP)[:16]))


def test_nothing_is_kept_where_nothing_is_to_be_kept(cache: Path, region: CompiledRegion) -> None:
    store = RegionStore("x86-64-v2", False)
    store.add(region)
    store.save()
    assert not list(cache.iterdir()) and found(store) == [(region, 0)]


@pytest.mark.parametrize("harm", ["a byte", "the end", "others may write"])
def test_a_file_that_cannot_be_trusted_is_not_used(cache: Path, region: CompiledRegion, harm: str) -> None:
    store = RegionStore("x86-64-v2", True)
    store.add(region)
    store.save()
    (path,) = cache.glob("regions-*.bin")
    data = bytearray(path.read_bytes())
    if harm == "a byte":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif harm == "the end":
        path.write_bytes(data[:-9])
    else:
        path.chmod(0o666)
    assert len(RegionStore("x86-64-v2", True)) == 0
