"""Each mistake of the table gets its error, and docs/errors.md says so."""

from __future__ import annotations

import pytest
import torch
from bad_input import CASES, DOCUMENT, attempt, render


@pytest.mark.parametrize(
    ("action", "expected"),
    [pytest.param(a, e, id=f"{area}: {what}") for area, cases in CASES.items() for what, a, e in cases],
)
def test_mistake(action, expected) -> None:
    error = attempt(action)
    assert isinstance(error, expected) and len(str(error)) > 20
    assert not torch._C._is_torch_function_mode_enabled() and not torch.is_inference_mode_enabled()


def test_document_is_true() -> None:
    assert DOCUMENT.read_text() == render(), "run: python tests/helpers/bad_input.py"
