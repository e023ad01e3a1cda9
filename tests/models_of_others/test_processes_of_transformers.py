"""transformers' models that processes share by their own plans have the noise of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from process_cases import compared, in_processes
from process_transformers import FOLDER, all_of, noise_in

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.full)])
def test_models_that_are_shared_by_their_plans(size: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / "models"
    models.mkdir()
    monkeypatch.setenv(FOLDER, str(models))
    one = noise_in(None, models)
    for found, message in in_processes(size, tmp_path, all_of):
        assert found.keys() == one.keys() and len(one) == 16
        for name, values in one.items():
            if name.endswith("noise"):
                assert compared(values, [found[name]]) == (sum(v.numel() for v in values.values()), 0), name
                assert all(bool((v != 0).all()) for v in values.values())
            else:  # sums in another order, 1,000 times less than the noise
                torch.testing.assert_close(found[name]["logits"], values["logits"], rtol=0, atol=1e-4)
        assert "q_proj:linear#0" in message and "hardware needs the whole" in message
