"""The machine's own list of package sources, and what of it is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringfence.core.errors import UserError
from ringfence.images import deb_sources

ONE_LINE = """# the archive
deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror.example/debian bookworm main contrib # comment
deb-src http://mirror.example/debian bookworm main
deb http://mirror.example/debian bookworm-updates main
  deb http://mirror.example/security bookworm-security main
deb http://mirror.example/debian bookworm-backports main
deb http://other.example/tool bookworm stable
deb http://other.example/tool nodistro main
deb cdrom:[Debian]/ bookworm main
#deb http://mirror.example/off bookworm main
"""
DEB822 = """# the archive
Types: deb deb-src
URIs: http://mirror.example/debian
# in between
Suites: bookworm bookworm-updates bookworm-backports
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: http://other.example/tool
Suites: bookworm
Components: stable

Enabled: no
Types: deb
URIs: http://mirror.example/off
Suites: bookworm
Components: main

types: deb
uris: http://mirror.example/security
suites: bookworm-security
components: main
"""


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deb_sources, "_read_all", lambda: {"sources.list": ONE_LINE, "debian.sources": DEB822})
    monkeypatch.setattr(deb_sources, "_codename", lambda: "bookworm")


def test_one_line_entries() -> None:
    keys = "[arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    assert deb_sources.machine_sources(None)["sources.list"].splitlines() == [
        f"deb {keys} http://mirror.example/debian bookworm main contrib",
        "deb http://mirror.example/debian bookworm-updates main",
        "deb http://mirror.example/security bookworm-security main",
    ]


def test_stanzas() -> None:
    first, second = deb_sources.machine_sources("trixie")["debian.sources"].split("\n\n")
    assert first.splitlines() == [
        "Types: deb",
        "URIs: http://mirror.example/debian",
        "Suites: trixie trixie-updates",
        "Components: main",
        "Signed-By:",
        " -----BEGIN PGP PUBLIC KEY BLOCK-----",
        " .",
        " abc",
        " -----END PGP PUBLIC KEY BLOCK-----",
    ]
    assert second.splitlines() == ["Types: deb", "uris: http://mirror.example/security", "Suites: trixie-security", "components: main"]


def test_a_suite_without_updates_of_its_own() -> None:
    sources = deb_sources.machine_sources("sid")
    assert [line.split()[-3] for line in sources["sources.list"].splitlines()] == ["sid"]
    assert "Suites: sid\n" in sources["debian.sources"] and "security" not in sources["debian.sources"]


def test_names_that_are_no_suites() -> None:
    for name in ("../x", "Trixie", "a b", "", "x\ny"):
        with pytest.raises(UserError, match="suite"):
            deb_sources.machine_sources(name)


def test_a_machine_without_an_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deb_sources, "_read_all", lambda: {"sources.list": "deb http://other.example/tool stable-tool main\n"})
    with pytest.raises(UserError, match="names no archive"):
        deb_sources.machine_sources(None)


def test_without_apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no apt on this machine") as error:
        deb_sources.machine_sources(None)
    assert error.value.remedy


def test_the_guest_gets_no_passwords() -> None:
    kept = {"a.list": "deb http://mirror.example/debian bookworm main\n"}
    left_out = {
        "password.list": "deb https://me:secret@mirror.example/debian bookworm main\n",
        "disk.list": "deb file:/srv/mirror bookworm main\n",
        "key.list": "deb [signed-by=/etc/apt/keyrings/mine.gpg] http://mirror.example/debian bookworm main\n",
        "key.sources": "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\nComponents: main\nSigned-By: /srv/key.gpg\n",
    }
    assert deb_sources.for_the_guest({**kept, **left_out}) == kept
