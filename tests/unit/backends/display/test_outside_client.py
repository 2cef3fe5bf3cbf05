"""The VNC server as a client of other people sees it: vncsnapshot (TightVNC's code), with each encoding."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ringfence.backends.display.options import VncOptions
from ringfence.backends.display.vnc import VncServer
from tests.unit.backends.display.fakes import FakeSeat, eventually, noise

pytestmark = pytest.mark.skipif(shutil.which("vncsnapshot") is None, reason="vncsnapshot is not installed (apt: vncsnapshot)")


@pytest.mark.parametrize("encoding", ["raw", "hextile", "zlib", "tight"])
def test_a_snapshot_by_another_client(encoding: str, tmp_path: Path) -> None:
    seat = FakeSeat(noise(720, 400))
    server = VncServer(VncOptions(port=0))
    server.start(seat)
    try:
        host, port = server.address
        # This client knows nothing of sizes that change, and who comes before the first picture is told another one.
        socket.create_connection(server.address, timeout=10).close()
        eventually(lambda: server._last is not None)
        file = tmp_path / "screen.jpg"
        command = ["vncsnapshot", "-quiet", "-encodings", encoding, "-quality", "100", f"{host}:{port - 5900}", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        seen = np.asarray(Image.open(file).convert("RGB")).astype(int)
        assert seen.shape == seat.picture.shape
        assert np.abs(seen - seat.picture).max() <= 3, "a JPEG of the best quality is no further from the picture"
    finally:
        server.close()
        seat.close()
