"""Models of transformers: both engines reach every site, and find the same."""

from __future__ import annotations

import pytest
from models import ORIGINALS
from models.walking import walked

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", [name for name, made in ORIGINALS.items() if made.package == "transformers"])
def test_the_engines_find_the_same(name: str) -> None:
    found = walked(name, rows=6)
    assert not found.differing and set(found.sites) == found.reached and not found.warned, found
