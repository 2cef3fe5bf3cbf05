from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.boot.images import close_memories


@pytest.fixture(autouse=True)
def _close_memories() -> Iterator[None]:
    yield
    close_memories()
