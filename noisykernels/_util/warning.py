"""Warnings that point at the user's own line, wherever in the package they arise."""

from __future__ import annotations

import sys
import warnings

__all__ = ["warn_user"]

PACKAGE = __name__.partition(".")[0]


def warn_user(text: str) -> None:
    """Warns of the line that has called the package, or a model of torch's that runs it: how deep within it depends on
    engines, decorators and workers."""
    level, found = 1, 1
    frame = sys._getframe()
    while frame.f_back is not None:
        level += 1
        owner = frame.f_globals.get("__name__", "").partition(".")[0]
        if owner == PACKAGE or (owner == "torch" and level == found + 1):
            found = level
        frame = frame.f_back
    warnings.warn(text, stacklevel=found)
