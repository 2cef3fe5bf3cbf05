"""Errors as a user meets them: what happened, why, and what to do.

`UserError` is the only exception that the command line turns into exit status 125.  A guest's own fault never raises:
it ends in a typed `Exit` (see `ringfence.engine.api`).
"""

from __future__ import annotations


class RingfenceError(Exception):
    """Base of all errors raised on purpose by this package."""


class UserError(RingfenceError):
    """Something the user gave, or the host lacks.  `cause` says what happened and why, `remedy` what to do about it."""

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(f"{cause}\n{remedy}" if remedy else cause)
        self.cause = cause
        self.remedy = remedy


class ImageError(UserError):
    """A disk image or kernel file is damaged, of the wrong kind, or uses a feature that is not supported."""


class GuestMemoryError(RingfenceError):
    """An access to guest physical memory outside of any RAM region (a device sees it on a wild descriptor)."""

    def __init__(self, guest_addr: int, size_bytes: int) -> None:
        super().__init__(f"guest physical address {guest_addr:#x} + {size_bytes:#x} is outside of RAM")
        self.guest_addr = guest_addr
        self.size_bytes = size_bytes


class GuestError(RingfenceError):
    """The guest drove a device into a state from which it cannot go on; ends that guest alone (exit status 70)."""


class SnapshotError(RingfenceError):
    """Saved state does not fit the part it is loaded into: fields missing, left over, or out of range."""
