"""What the tests of the results store share: its key, and a file that is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from noisykernels._engine.store import Store, StoreError

KEY = {"weights": "ab" * 32, "seed": 7, "plan": {"threads": 2, "batch_rows": 500}}


def refused(path: Path, match: str, key: dict[str, object] = KEY) -> str:
    """Opening fails with this text, and leaves every file of the folder as it was."""

    def content() -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in path.parent.iterdir() if p.is_file() and path.parent != Path("/proc")}

    before = content()
    with pytest.raises(StoreError, match=match) as caught:
        Store(path, key)
    assert str(caught.value).startswith(f"{path}: ")
    assert content() == before
    return str(caught.value)
