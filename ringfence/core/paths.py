"""Where this program keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """Compiled code and what belongs to it: RINGFENCE_CACHE, or the user's cache folder."""
    chosen = os.environ.get("RINGFENCE_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("ringfence"))
