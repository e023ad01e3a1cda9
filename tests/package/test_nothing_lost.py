"""Nothing is lost when the code is put in order: results, texts and errors are those of version 0.1.0, its files open.

tests/helpers/recorded.py gathers the cases; tests/data/v0_1_0 what they gave, and files that were written then.
Written anew on purpose since: the first word of five messages (`Compute` and `Search` check themselves), what fourteen
messages expect (ranges of one table, also of items of lists), the name of the error of a damaged file
(`ResultFileError`), the code that a report shows (`compute=`) and says of a search that was stopped, and what a
converter makes of its limit (two digests of `op_hardware`: the limit to the bit, not the number beside it), the
plans of four walks (rows of a pass in little memory; a model that cannot be recorded has no chunks), and the words of
tables and reports of the share of multiply-adds that noise and hardware reach, and of the sites whose curves never go
as far as asked ("never", and how many), the message of a search whose floor lies above the clean accuracy, the
unit of the level on a picture of weights' noise, which is relative to max|W| of the layer, and all that searches find
(their measurements ask for other rows and draws, and for fewer), the name of what is measured of votes and
orders (`values`), the message of labels that no accuracy counts, which offers a measure of numbers and says how labels
are made, that of outputs that are NaN, where inputs are, and the crossings of searches beyond the one asked for.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import recorded
import torch
from recorded_digests import meta_of, six, told
from recorded_files import FOLDER, SETTINGS, STORES, activation_walk, machine, noisy_net, trained
from recorded_stores import claimed, tasks_of

from noisykernels.study import Study
from noisykernels.zoo import load_checkpoint

CONTENT = recorded.recorded()
DIGESTS: dict[str, str] = CONTENT["digests"]
NEEDS = {"pages": ("matplotlib",), "frames": ("pandas", "xarray")}


@pytest.mark.parametrize("name", DIGESTS)
def test_the_same_as_recorded(name: str) -> None:
    for module in NEEDS.get(name.split(": ")[0], ()):
        pytest.importorskip(module)
    assert told(recorded.value_of(name)) == DIGESTS[name]


def test_every_case_is_recorded() -> None:
    assert {name.split(": ")[0] for name in DIGESTS} == set(recorded.CASES)


def test_the_native_tests_have_the_same_digests() -> None:
    assert recorded.native_digests() == CONTENT["native"] and len(CONTENT["native"]) == 4


@pytest.fixture
def of_that_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store belongs to torch's version, which says nothing about the file's form."""
    monkeypatch.setattr(torch, "__version__", CONTENT["machine"]["torch"])


def test_the_study_file_opens() -> None:
    study, fresh = Study.load(FOLDER / "study.json"), activation_walk(None)
    assert study.records == fresh.records and len(study.records) == 48
    assert meta_of(study.meta) == meta_of(fresh.meta)
    assert six(study.midpoints()) == six(fresh.midpoints())


@pytest.mark.usefixtures("of_that_torch")
@pytest.mark.parametrize("name", STORES)
def test_the_complete_store_is_not_evaluated_again(name: str, tmp_path: Path) -> None:
    path = Path(shutil.copy(FOLDER / f"{name}.db", tmp_path))
    before = claimed(path)
    study = STORES[name](path)
    assert claimed(path) == before and before
    assert study.records == STORES[name](None).records


@pytest.mark.usefixtures("of_that_torch")
@pytest.mark.parametrize("name", STORES)
def test_of_half_a_store_only_the_rest_is_evaluated(name: str, tmp_path: Path) -> None:
    path = Path(shutil.copy(FOLDER / f"{name}-half.db", tmp_path))
    before, complete = claimed(path), tasks_of(FOLDER / f"{name}.db")
    study = STORES[name](path)
    assert set(before) < set(claimed(path)) and 0 < len(before) < len(complete)
    assert tasks_of(path) == complete
    assert study.records == STORES[name](None).records


def weights(model: Any) -> list[Any]:
    return list(model.state_dict().values())


def test_training_goes_on_from_the_checkpoint() -> None:
    """Interrupted and read back, it ends with the bits of training that was not: on a machine of the kind that wrote
    the file. Elsewhere the first part itself may come out a little different, which Adam magnifies up to its step."""
    straight, resumed, twin = (noisy_net() for _ in range(3))
    first = trained(straight, 2, 0)
    with pytest.warns(UserWarning, match="holds no checksum"):
        history = load_checkpoint(FOLDER / "checkpoint.pt", resumed, SETTINGS)
    assert [list(r) for r in history] == [list(r) for r in first]
    twin.load_state_dict(torch.load(FOLDER / "state.pt", weights_only=True))
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(twin), strict=True))
    said = [trained(model, 1, 6) for model in (straight, resumed, twin)]
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(twin), strict=True))
    if machine() == CONTENT["machine"]:
        assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(straight), strict=True))
        assert said[0][0]["loss"] == said[1][0]["loss"]
    for a, b in zip(weights(resumed), weights(straight), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-2)


def test_files_name_no_module() -> None:
    """A module that moves must not make a file unreadable."""
    files = sorted(FOLDER.iterdir())
    assert len(files) == 8 and sum(f.stat().st_size for f in files) < 300_000
    for file in files:
        if file.name != "digests.json":  # which holds messages and tables
            named = set(re.findall(rb"noisykernels\.\w*", file.read_bytes()))
            assert named <= {b"noisykernels.study", b"noisykernels.results"}, file.name  # names of formats
