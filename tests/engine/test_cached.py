"""Studies that are kept as they come: they go on where they were stopped, grow, and end as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import noisykernels as nk
from noisykernels._engine import cached as kept
from noisykernels._engine.evaluator import Evaluator
from noisykernels._engine.store import StoreError
from noisykernels.metrics import BINARY
from noisykernels.zoo import MLP

SETTINGS: dict[str, Any] = dict(noise=nk.Noise(add=1.0), seed=1)


def problem() -> tuple[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    model = MLP(12, 4, width=8, norm=True).eval()
    x = torch.randn(300, 12)
    return model, (x, model(x).argmax(1))


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of predictions that the engine was asked for."""
    asked: list[int] = []
    correct = Evaluator.answers

    def counted(self: Evaluator, requests: Sequence[Any], *args: Any) -> Any:
        asked.extend(len(r.levels) * len(r.draws) * r.rows for r in requests)
        return correct(self, requests, *args)

    monkeypatch.setattr(Evaluator, "answers", counted)
    return asked


def test_the_same_study_again_evaluates_nothing(tmp_path: Path, evaluated: list[int]) -> None:
    model, data = problem()
    for grid in (dict(levels=[0.1, 1.0], draws=2), dict()):
        file = tmp_path / f"{len(grid)}.db"
        first = nk.walk(model, data, **SETTINGS, **grid, store=file)
        evaluated.clear()
        assert nk.walk(model, data, **SETTINGS, **grid, store=file) == first
        assert not evaluated
        assert nk.walk(model, data, **SETTINGS, **grid).records == first.records


def test_a_larger_study_evaluates_what_is_new(tmp_path: Path, evaluated: list[int]) -> None:
    model, data = problem()
    file = tmp_path / "a.db"
    nk.walk(model, data, **SETTINGS, levels=[0.1, 1.0], draws=2, sites="fc*", store=file)
    evaluated.clear()
    whole = nk.walk(model, data, **SETTINGS, levels=[0.1, 1.0, 3.0], draws=3, store=file)
    sites, old = len(whole.meta.sites), 4  # fc1, fc2, fc3, fc_out
    assert sum(evaluated) == 300 * (sites * 3 * 3 - old * 2 * 2)
    assert whole.records == nk.walk(model, data, **SETTINGS, levels=[0.1, 1.0, 3.0], draws=3).records


def test_what_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluated: list[int]) -> None:
    model, data = problem()
    monkeypatch.setattr(kept, "GO", 0.0)
    monkeypatch.setattr(kept, "FIRST_GO", 1)
    grid = dict(levels=[0.1, 1.0, 3.0], draws=3)
    correct, calls = Evaluator.answers, []

    def interrupted(self: Evaluator, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return correct(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "answers", interrupted)
        with pytest.raises(KeyboardInterrupt):
            nk.walk(model, data, **SETTINGS, **grid, store=tmp_path / "a.db")
    evaluated.clear()
    seen: list[int] = []
    study = nk.walk(
        model, data, **SETTINGS, **grid, store=tmp_path / "a.db", progress=lambda done, total: seen.append(done)
    )
    tasks = 2 * len(study.meta.sites)  # 250 and 50 rows of each site
    assert len(evaluated) == tasks - 3 and seen == sorted(seen) and seen[-1] == 3 * len(study.meta.sites)
    assert study.records == nk.walk(model, data, **SETTINGS, **grid).records


def test_sites_do_not_matter_for_what_a_store_takes(tmp_path: Path) -> None:
    """Also where the first ones cannot share work."""

    class Mixing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l, self.o = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.l(x)
            return self.o(x - x.mean(0))

    torch.manual_seed(0)
    model, x = Mixing().eval(), torch.randn(60, 4)
    data = x, model(x).argmax(1)
    how: dict[str, Any] = dict(SETTINGS, levels=[1.0], draws=1, store=tmp_path / "a.db")
    with pytest.warns(UserWarning, match="every pass runs the whole model"):
        nk.walk(model, data, **how, sites=["l"])
    with pytest.warns(UserWarning, match="every pass runs the whole model"):
        assert len(nk.walk(model, data, **how).records) == 3


def test_signs_of_life_come_while_one_pass_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "BEAT", 0.05)
    beats: list[str] = []
    monkeypatch.setattr(kept.Store, "heartbeat", lambda self, owner: beats.append(owner))
    correct = Evaluator.answers
    monkeypatch.setattr(Evaluator, "answers", lambda *args: (time.sleep(0.5), correct(*args))[1])
    model, data = problem()
    nk.walk(model, data, **SETTINGS, levels=[1.0], draws=1, store=tmp_path / "a.db")
    assert len(beats) >= 3


def test_trouble_with_the_file_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes out as such where leases cannot be given up; a missing sign of life is no traceback of a thread."""
    monkeypatch.setattr(kept, "BEAT", 0.01)
    monkeypatch.setattr(kept.Store, "heartbeat", lambda self, owner: beats.append(owner) or self.release(owner))
    beats: list[str] = []
    said: list[object] = []
    folder = tmp_path / "folder"
    folder.mkdir()

    def stopped(*_: Any) -> Any:
        shutil.rmtree(folder)
        time.sleep(0.2)
        raise KeyboardInterrupt

    monkeypatch.setattr(Evaluator, "answers", stopped)
    monkeypatch.setattr(threading, "excepthook", said.append)
    model, data = problem()
    with pytest.raises(KeyboardInterrupt):
        nk.walk(model, data, **SETTINGS, levels=[1.0], draws=1, store=folder / "a.db")
    assert len(beats) > 1 and not said


def test_another_study_is_refused(tmp_path: Path) -> None:
    model, (x, y) = problem()
    grid = dict(levels=[1.0], draws=1)
    file = tmp_path / "a.db"
    nk.walk(model, (x, y), **SETTINGS, **grid, store=file)
    before = file.read_bytes()
    with pytest.raises(StoreError, match="seed"):
        nk.walk(model, (x, y), noise=SETTINGS["noise"], seed=2, **grid, store=file)
    with pytest.raises(StoreError, match="inputs"):
        nk.walk(model, (x + 1, y), **SETTINGS, **grid, store=file)
    torch.nn.init.zeros_(model.fc1.bias)
    with pytest.raises(StoreError, match="weights"):
        nk.walk(model, (x, y), **SETTINGS, **grid, store=file)
    assert file.read_bytes() == before


TASK = "fc1:linear#0|0x1.0000000000000p+0|0|0:300"
FORGED = {
    "a row for all rows": (TASK, '{"shape":[1,1,1],"correct":"eJxrAAAAgQCB","nan":"eJxjAAAAAQAB"}'),
    "a word": (TASK, '"abc"'),
    "null": (TASK, "null"),
    "another shape": (TASK, '{"shape":[1,300],"correct":"","nan":""}'),
    "a long number": (TASK, "9" * 5000),
    "a deep list": (TASK, "[" * 100_000),
    "a task of no name": ("x", "1"),
    "a level that is none": (TASK.replace("0x1.0000000000000p+0", "one"), "1"),
    "rows that the study has not": (TASK.replace("0:300", "0:999999999999"), "1"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_result_that_is_none_is_refused(case: str, tmp_path: Path) -> None:
    """Its checksum fits: a store is data, whoever wrote it."""
    model, data = problem()
    grid, file = dict(levels=[1.0], draws=1, sites="fc1"), tmp_path / "a.db"
    nk.walk(model, data, **SETTINGS, **grid, store=file)
    task, result = FORGED[case]
    with contextlib.closing(sqlite3.connect(file)) as db, db:
        row = (task, result, zlib.crc32(f"{task}\n{result}".encode()), "me", 0)
        db.execute("INSERT OR REPLACE INTO tasks VALUES (?, ?, ?, ?, ?)", row)
    with pytest.raises(StoreError) as caught:
        nk.walk(model, data, **SETTINGS, **grid, store=file)
    assert str(caught.value).startswith(f"{file}: damaged: the result of task {task}: ")
    assert case != "rows that the study has not" or "expected 300 rows" in str(caught.value)
    assert len(str(caught.value)) < 600


def test_answers_survive_their_encoding() -> None:
    answer = np.random.default_rng(0).integers(-1, 2, (3, 2, 101)).astype(np.int8)
    assert np.array_equal(BINARY.unpacked(json.loads(json.dumps(BINARY.packed(answer))), answer.shape), answer)


def command(tmp_path: Path, *more: str) -> list[str]:
    fixed = ["grid", "--epochs", "1", "--cache", str(tmp_path), "--quiet", "--threads", "1"]
    return [sys.executable, "-m", "noisykernels", *fixed, "--levels", "log:0.01:100:201", "--draws", "25", *more]


def stamps(folder: Path) -> dict[str, int]:
    """When each file of the store was last written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("s.db*")}


def test_killed_studies_and_two_at_once_end_as_one_alone(tmp_path: Path) -> None:
    """kill -9 in the middle, three times; then two processes share what is left."""
    subprocess.run([*command(tmp_path), "--out", str(tmp_path / "alone.json")], check=True, capture_output=True)
    store = ["--store", str(tmp_path / "s.db")]
    for seconds in (0.2, 0.5, 0.9):
        before = stamps(tmp_path)
        process = subprocess.Popen(command(tmp_path, *store), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while stamps(tmp_path) == before and process.poll() is None:  # it has yet to open the store
            time.sleep(0.05)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL  # it was in the middle
    both = [
        subprocess.Popen([*command(tmp_path, *store), "--out", str(tmp_path / f"{i}.json")], stdout=subprocess.DEVNULL)
        for i in range(2)
    ]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    alone = nk.Study.load(tmp_path / "alone.json")
    for i in range(2):
        assert nk.Study.load(tmp_path / f"{i}.json").records == alone.records
