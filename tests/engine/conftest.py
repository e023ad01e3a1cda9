"""Where the tests put a results store, and faults that last for a test."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a study? 100%#.db"


@pytest.fixture
def patch(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> pytest.MonkeyPatch:
    """Both engines' counts are held against each other: with one thread they are the same each time."""
    return monkeypatch
