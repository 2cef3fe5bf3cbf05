"""Modules that are imported when they are first used, because a start that does not need them should not wait for them.

    if TYPE_CHECKING:
        import numpy as np
    else:
        np = LateModule("numpy")  # wanted once somebody looks at the screen

Type checkers and the layering test see an ordinary import.  docs/decisions/0018-start.md tells what is worth it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class LateModule:
    """Stands for the module `name`.  What was looked up once is found without asking again; safe from any thread."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(import_module(self.__name__), attribute)
        self.__dict__[attribute] = value
        return value
