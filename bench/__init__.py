"""Ringfence beside QEMU's TCG, measured side by side in one run: `scripts/bench`."""
