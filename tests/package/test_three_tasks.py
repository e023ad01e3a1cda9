"""The example of three tasks: each network learns something, and noise takes it away again."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples/three_tasks.py"


@pytest.mark.full
def test_each_task_is_learnt_walked_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("three_tasks", EXAMPLE)
    assert spec is not None and spec.loader is not None
    tasks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tasks)
    regressor, segmentation, encoder = tasks.run(tmp_path, [tasks.regressor, tasks.segmentation, tasks.encoder])
    assert regressor.meta.clean < -2 and segmentation.meta.clean > 0.5 and encoder.meta.clean > 0.9
    assert all(p.status == "ok" for study in (regressor, segmentation) for p in study.midpoints())
    assert len(encoder.midpoints()) == 4 * 7
    assert capsys.readouterr().out.count("at=drop:") == 3
    assert all((tmp_path / f"task_{name}.png").exists() for name in ("regressor", "segmentation", "encoder"))
