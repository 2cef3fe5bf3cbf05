"""Where this program keeps what it can make again, and where its running parts meet."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Compiled code and what belongs to it: RINGFENCE_CACHE, or the user's cache folder."""
    chosen = os.environ.get("RINGFENCE_CACHE")
    return Path(chosen) if chosen else user_cache_folder()


def user_cache_folder() -> Path:
    return _user_folder("XDG_CACHE_HOME", ".cache")


def data_folder() -> Path:
    """What the user keeps: overlays of images."""
    return _user_folder("XDG_DATA_HOME", ".local/share")


def _user_folder(variable: str, below_home: str) -> Path:
    """XDG Base Directory Specification, version 0.8."""
    chosen = os.environ.get(variable, "").strip()
    return (Path(chosen) if chosen.startswith("/") else Path.home() / below_home) / "ringfence"


def runtime_folder() -> Path:
    """Sockets of what runs now: RINGFENCE_RUNTIME, or below the user's runtime folder, or below the folder for temporary files."""
    chosen = os.environ.get("RINGFENCE_RUNTIME")
    if chosen:
        return Path(chosen)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "ringfence" if runtime else Path(os.environ.get("TMPDIR") or "/tmp") / f"ringfence-{os.getuid()}"
