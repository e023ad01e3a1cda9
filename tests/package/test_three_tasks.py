"""The example of three tasks, at a small size: each network learns something, and noise takes it away again."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples/three_tasks.py"


@pytest.mark.parametrize(
    ("names", "worst"),
    [
        (["regressor"], [-2.0]),
        pytest.param(["regressor", "segmentation", "encoder"], [-2.0, 0.5, 0.9], marks=pytest.mark.full),
    ],
)
def test_each_task_is_learnt_walked_and_drawn(
    names: list[str], worst: list[float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("three_tasks", EXAMPLE)
    assert spec is not None and spec.loader is not None
    tasks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tasks)
    for name, limit, study in zip(names, worst, tasks.run(tmp_path, [getattr(tasks, n) for n in names]), strict=True):
        assert (study.meta.clean > limit) == (name != "regressor")  # lower is better there
        assert name == "encoder" or all(p.status == "ok" for p in study.midpoints())
        assert (tmp_path / f"task_{name}.png").stat().st_size > 10_000
    assert capsys.readouterr().out.count("at=drop:") == len(names)
