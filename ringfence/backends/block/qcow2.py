"""The qcow2 format's public names."""

from __future__ import annotations

from ringfence.backends.block.open import create_overlay
from ringfence.backends.block.qcow2_block import Qcow2Block
from ringfence.backends.block.qcow2_create import create

__all__ = ["Qcow2Block", "create", "create_overlay"]
