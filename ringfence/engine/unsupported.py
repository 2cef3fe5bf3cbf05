"""What this version does not execute."""

from __future__ import annotations


class Unsupported(Exception):
    """The guest asked for a mode that this version does not execute."""
