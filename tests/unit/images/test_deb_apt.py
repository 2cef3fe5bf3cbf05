"""apt with a root of its own, on an archive of the test's: downloads that were interrupted, damaged or are not allowed."""

from __future__ import annotations

import hashlib
import http.server
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringfence.core.errors import UserError
from ringfence.images import deb_files
from ringfence.images.deb_apt import Package, PrivateApt

pytestmark = [
    pytest.mark.skipif(not (shutil.which("apt-get") and shutil.which("dpkg-deb")), reason="apt-get or dpkg-deb is not installed here"),
]
NOISE = random.Random(5).randbytes(1 << 20)


class Archive:
    """A package archive at an address of this machine's; `asked` are the paths that were wanted, with their ranges."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str | None]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                range_ = self.headers.get("Range")
                outer.asked.append((self.path, range_))
                path = folder / self.path.rpartition("/")[2]
                if not path.is_file():
                    self.send_error(404)
                    return
                data = path.read_bytes()
                start = int(range_.removeprefix("bytes=").partition("-")[0]) if range_ else 0
                self.send_response(206 if range_ else 200)
                if range_:
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                self.send_header("Content-Length", str(len(data) - start))
                self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
                self.end_headers()
                self.wfile.write(data[start:])

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.source = {"test.list": f"deb [trusted=yes] http://127.0.0.1:{self._server.server_port} ./\n"}

    def add(self, name: str, depends: str = "", essential: bool = False) -> Path:
        root = self.folder / f"root-{name}"
        (root / "DEBIAN").mkdir(parents=True)
        (root / "lib").mkdir()
        (root / "lib" / name).write_bytes(NOISE)
        (root / "lib" / name).chmod(0o640)
        control = f"Package: {name}\nVersion: 1:2.0\nArchitecture: amd64\nMaintainer: test <t@example.org>\nDescription: test\n"
        control += f"Depends: {depends}\n" if depends else ""
        control += "Essential: yes\n" if essential else ""
        (root / "DEBIAN" / "control").write_text(control)
        path = self.folder / f"{name}_2.0_amd64.deb"
        build = ["dpkg-deb", "--root-owner-group", "--build", str(root), str(path)]
        subprocess.run(build, check=True, capture_output=True, timeout=60)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entry = f"{control}Filename: ./{path.name}\nSize: {path.stat().st_size}\nSHA256: {digest}\n\n"
        with open(self.folder / "Packages", "a") as file:
            file.write(entry)
        listed = (self.folder / "Packages").read_bytes()
        release = f"Origin: Test\nArchitectures: amd64\nSHA256:\n {hashlib.sha256(listed).hexdigest()} {len(listed)} Packages\n"
        (self.folder / "Release").write_text(release)
        return path

    def ranges_of(self, name: str) -> list[str | None]:
        return [range_ for path, range_ in self.asked if path.endswith(name)]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    settings = tmp_path / "apt.conf"
    # The machine's own proxy does not know this archive.
    settings.write_text('Acquire::http::Proxy "DIRECT";\nAcquire::Retries "0";\n')
    monkeypatch.setenv("APT_CONFIG", str(settings))
    (tmp_path / "archive").mkdir()
    made = Archive(tmp_path / "archive")
    made.add("base", essential=True)
    made.add("library")
    made.add("tool", depends="library")
    yield made
    made.close()


@pytest.fixture
def apt(archive: Archive, tmp_path: Path) -> PrivateApt:
    made = PrivateApt(tmp_path / "a folder", archive.source, origin="Test")
    made.update()
    return made


def resolved(apt: PrivateApt) -> list[Package]:
    return apt.resolve(["?essential", "tool"])


def test_finds_downloads_and_keeps(apt: PrivateApt, archive: Archive) -> None:
    packages = resolved(apt)
    assert [(package.name, package.version) for package in packages] == [("base", "1:2.0"), ("library", "1:2.0"), ("tool", "1:2.0")]
    seen: list[tuple[int, int]] = []
    files = apt.fetch(packages, on_progress=lambda label, done, total: seen.append((done, total)))
    assert {name: path.read_bytes() for name, path in files.items()} == {
        name: (archive.folder / f"{name}_2.0_amd64.deb").read_bytes() for name in ("base", "library", "tool")
    }
    assert seen[-1][0] == seen[-1][1] > 3000
    count = len(archive.asked)
    assert apt.fetch(packages, offline=True) == files
    assert len(archive.asked) == count


def test_another_origin_does_not_count(archive: Archive, tmp_path: Path) -> None:
    apt = PrivateApt(tmp_path / "other", archive.source, origin="Debian")
    apt.update()
    with pytest.raises(UserError, match="install failed"):
        apt.resolve(["tool"])


def test_goes_on_where_it_was_interrupted(apt: PrivateApt, archive: Archive, tmp_path: Path) -> None:
    packages = resolved(apt)
    whole = (archive.folder / "tool_2.0_amd64.deb").read_bytes()
    partial = tmp_path / "a folder" / "archives" / "partial" / packages[2].file_name
    partial.write_bytes(whole[:700_000])
    assert apt.fetch(packages)["tool"].read_bytes() == whole
    assert archive.ranges_of("tool_2.0_amd64.deb") == ["bytes=700000-"]


def test_a_damaged_beginning_is_not_taken(apt: PrivateApt, archive: Archive, tmp_path: Path) -> None:
    packages = resolved(apt)
    partial = tmp_path / "a folder" / "archives" / "partial" / packages[2].file_name
    partial.write_bytes(bytes(700_000))
    with pytest.raises(UserError, match=r"(?i)hash sum mismatch"):
        apt.fetch(packages)
    assert apt.fetch(packages)["tool"].read_bytes() == (archive.folder / "tool_2.0_amd64.deb").read_bytes()  # it is gone


def test_a_file_that_was_damaged_on_the_disk_is_fetched_again(apt: PrivateApt, archive: Archive) -> None:
    packages = resolved(apt)
    path = apt.fetch(packages)["tool"]
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="not been downloaded yet: tool"):
        apt.fetch(packages, offline=True)
    assert apt.fetch(packages)["tool"].read_bytes() == (archive.folder / "tool_2.0_amd64.deb").read_bytes()


def test_a_damaged_archive_is_refused(apt: PrivateApt, archive: Archive) -> None:
    packages = resolved(apt)
    path = archive.folder / "tool_2.0_amd64.deb"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"(?i)hash sum mismatch"):
        apt.fetch(packages)


def test_an_archive_on_a_disk_of_this_machine(archive: Archive, tmp_path: Path) -> None:
    """apt leaves its packages where they are; so does what finds one of them damaged."""
    apt = PrivateApt(tmp_path / "local", {"local.list": f"deb [trusted=yes] file:{archive.folder} ./\n"}, origin="Test")
    apt.update()
    packages = resolved(apt)
    original = archive.folder / "tool_2.0_amd64.deb"
    assert apt.fetch(packages)["tool"] == original
    data = bytearray(original.read_bytes())
    data[5000] ^= 1
    original.write_bytes(data)
    with pytest.raises(UserError):
        apt.fetch(packages)
    assert original.read_bytes() == data


def test_lists_that_were_changed_are_refused(apt: PrivateApt, archive: Archive) -> None:
    with open(archive.folder / "Packages", "a") as file:
        file.write("\n")
    with open(archive.folder / "Release", "a") as file:
        file.write("Label: new\n")
    with pytest.raises(UserError, match="update failed"):
        apt.update()


def test_an_archive_that_is_gone(apt: PrivateApt, archive: Archive) -> None:
    archive.close()
    with pytest.raises(UserError) as error:
        apt.update()
    assert "--offline" in error.value.remedy


def test_offline_without_anything(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        PrivateApt(tmp_path / "new", archive.source, origin="Test").resolve(["tool"])


def test_a_package_without_compression_is_the_same(archive: Archive, tmp_path: Path) -> None:
    package = archive.folder / "tool_2.0_amd64.deb"
    files = deb_files.files_of(package)
    again = tmp_path / "again.deb"
    again.write_bytes(deb_files.uncompressed(package, files))
    assert deb_files.files_of(again) == files
    for path in (package, again):
        told = subprocess.run(["dpkg-deb", "--field", str(path), "Package", "Version"], capture_output=True, check=True, timeout=60)
        assert told.stdout == b"Package: tool\nVersion: 1:2.0\n"


def test_a_damaged_package(tmp_path: Path) -> None:
    path = tmp_path / "x_1_amd64.deb"
    path.write_bytes(b"!<arch>\nnothing")
    with pytest.raises(UserError, match="x_1_amd64.deb cannot be unpacked"):
        deb_files.files_of(path)
