"""The machine's own list of package sources, as far as it is of its distribution, perhaps for another suite.

Specification: sources.list(5) of apt 2.6, both formats.  Addresses, keys and options are taken over as they are; what belongs to
other suppliers (other suites, other components than main) is left out, and so are CDs and source packages.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from ringfence.core.errors import UserError

_OS_RELEASE = Path("/etc/os-release")
_ROLLING = ("unstable", "sid")
_BASES = ("stable", "oldstable", "oldoldstable", "testing", *_ROLLING)
_SUFFIXES = ("", "-updates", "-security")
_SUITE = re.compile(r"[a-z][a-z0-9]{0,30}")
_ONE_LINE = re.compile(r"deb\s+(?P<options>\[[^\]]*\]\s+)?(?P<address>\S+)\s+(?P<suite>\S+)\s+(?P<components>[^#]*)")
_PASSWORD_OR_FILE = re.compile(r"://[^/\s]*@|\b(?:file|copy):/")
_OTHER_KEYS = re.compile(r"(?i)signed-by\s*[:=]\s*/(?!usr/share/keyrings/debian-)")
_CONFIG_S = 30.0
_SETTLE = "Check /etc/apt/sources.list and /etc/apt/sources.list.d."


def machine_sources(suite: str | None) -> dict[str, str]:
    """Names and texts of files for apt's folder of sources.  `suite` None keeps the machine's own.  Raises UserError."""
    if suite is not None and not _SUITE.fullmatch(suite):
        raise UserError(f"{suite!r} is not the name of a suite.", "Suites are named like bookworm, trixie or sid.")
    texts = _read_all()
    bases = {*_BASES, _codename()} - {""}
    kept = {}
    for name, text in texts.items():
        new = _deb822(text, bases, suite) if name.endswith(".sources") else _one_line(text, bases, suite)
        if new:
            kept[name] = new
    if not kept:
        raise UserError("apt's list of sources names no archive of this machine's distribution.", _SETTLE)
    return kept


def for_the_guest(sources: Mapping[str, str]) -> dict[str, str]:
    """Without files that hold a password, name the host's own files, or keys that the guest does not have."""
    return {name: text for name, text in sources.items() if not _PASSWORD_OR_FILE.search(text) and not _OTHER_KEYS.search(text)}


def _read_all() -> dict[str, str]:
    if shutil.which("apt-config") is None:
        raise UserError(
            "There is no apt on this machine; a Debian image is built from its package sources.", "Build it on Debian, and copy the image."
        )
    # `shell NAME Key/f` prints NAME='path' with the machine's own configuration applied.
    words = ["apt-config", "shell", "LIST", "Dir::Etc::sourcelist/f", "PARTS", "Dir::Etc::sourceparts/d"]
    try:
        printed = subprocess.run(words, capture_output=True, text=True, check=True, timeout=_CONFIG_S).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"apt's configuration cannot be read: {error}.", "Run: apt-config dump") from error
    paths = dict(re.findall(r"(?m)^(\w+)='(.*)'$", printed))
    files = []
    if "LIST" in paths and (listed := Path(paths["LIST"])).is_file():
        files.append(listed)
    if "PARTS" in paths and (parts := Path(paths["PARTS"])).is_dir():
        files += sorted(path for path in parts.iterdir() if path.suffix in (".list", ".sources") and path.is_file())
    try:
        return {path.name: path.read_text(errors="replace") for path in files}
    except OSError as error:
        raise UserError(f"apt's list of sources cannot be read: {error}.", _SETTLE) from error


def _codename() -> str:
    try:
        found = re.search(r'(?m)^VERSION_CODENAME="?([a-z0-9]*)', _OS_RELEASE.read_text(errors="replace"))
    except OSError:
        return ""
    return found[1] if found else ""


def _new_suite(word: str, bases: set[str], suite: str | None) -> str | None:
    """What stands for this suite in the new list; None where it is left out."""
    base, dash, rest = word.rstrip("/").partition("-")
    suffix = dash + rest
    if base not in bases or suffix not in _SUFFIXES or (suite in _ROLLING and suffix):
        return None
    return (suite or base) + suffix


def _one_line(text: str, bases: set[str], suite: str | None) -> str:
    lines = []
    for line in text.splitlines():
        found = _ONE_LINE.match(line.strip())
        if found is None or "main" not in found["components"].split() or found["address"].startswith("cdrom:"):
            continue
        if (new := _new_suite(found["suite"], bases, suite)) is not None:
            lines.append(f"deb {found['options'] or ''}{found['address']} {new} {found['components'].strip()}\n")
    return "".join(lines)


def _deb822(text: str, bases: set[str], suite: str | None) -> str:
    """Stanzas of fields; a line that begins with a blank goes on with the field before it."""
    kept = []
    without_comments = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", without_comments.strip("\n")):
        fields = {name.lower(): (name, value) for name, value in re.findall(r"(?m)^([\w-]+):((?:.*)(?:\n[ \t].*)*)", stanza)}

        def words(name: str, fields: dict[str, tuple[str, str]] = fields) -> list[str]:
            return fields.get(name, ("", ""))[1].split()

        suites = [new for word in words("suites") if (new := _new_suite(word, bases, suite)) is not None]
        wanted = "deb" in words("types") and "main" in words("components") and suites and words("enabled") not in (["no"], ["false"])
        if not wanted or any(address.startswith("cdrom:") for address in words("uris")):
            continue
        fields["types"] = ("Types", " deb")
        fields["suites"] = ("Suites", " " + " ".join(dict.fromkeys(suites)))
        kept.append("".join(f"{name}:{value}\n" for name, value in fields.values()))
    return "\n".join(kept)
