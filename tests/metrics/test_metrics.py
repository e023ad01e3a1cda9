"""A metric of one's own: in every study, named where a person reads it, told from others by stores."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from measure_cases import Hits
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.experiments import chips, layer_formats, order_sensitivity, sweep_formats
from noisykernels.metrics import NAN, Accuracy, Metric, PerRow, Weighted
from noisykernels.metrics.names import named
from noisykernels.plotting import plot_front
from noisykernels.walking import StoreError, walk_parameter

NAME = "top-2 hits"


class TopTwo(Accuracy):
    """A row counts where the label is one of the two classes with the highest scores."""

    name = NAME
    by_argmax = False

    def identity(self) -> str:
        return "hits of the test, k=2"

    def of_rows(self, scores: Tensor, labels: Tensor) -> Tensor:
        best = scores.topk(2, -1).indices
        found = (best == labels[:, None]).any(-1).to(torch.int8)
        return found.masked_fill_(scores.isnan().any(-1), NAN)

    def floor(self, outputs: Sequence[int], labels: Tensor) -> float:
        return 2 / outputs[-1]


METRICS: list[Metric] = [Accuracy(), TopTwo()]  # others: test_every_measure.py


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_the_number_of_a_row_does_not_depend_on_its_company(metric: Metric) -> None:
    """Of all levels and draws at once as of each row alone, and by its law."""
    scores, labels = torch.randn(2, 3, 40, 5), torch.randint(5, (40,))
    scores[0, 1, 7, 2] = float("nan")
    numbers = metric.of_rows(scores, labels)
    assert numbers.shape == (2, 3, 40) and numbers.dtype == metric.dtype
    for k in range(40):
        assert torch.equal(metric.of_rows(scores[..., k : k + 1, :], labels[k : k + 1]), numbers[..., k : k + 1])
    answer, law = numbers.numpy(), metric.law
    assert answer.dtype == law.empty(1).dtype and law.missing(answer).nonzero() == ((0,), (1,), (7,))
    assert (law.unpacked(json.loads(json.dumps(law.packed(answer))), answer.shape) == answer).all()
    assert float(law.numbers(answer).var()) <= law.largest_variance


@pytest.fixture(scope="module")
def studied() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A network that knows its classes, but not perfectly: a third of the labels is the second best."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5))
    x = torch.randn(300, 6)
    best = model(x).topk(2, -1).indices
    return model, (x, torch.where(torch.arange(300) % 3 == 0, best[:, 1], best[:, 0]))


def walked(studied: Any, **options: Any) -> nk.Study:
    model, data = studied
    grid: dict[str, Any] = {"levels": [0.1, 1.0, 10.0, 100.0], "draws": 2}
    return nk.walk(model, data, noise=nk.Noise(add=1.0), seed=1, **{**grid, "metric": TopTwo(), **options})


def test_a_walk_measures_it_as_a_plain_loop_does(studied) -> None:
    model, (x, y) = studied
    study = walked(studied)
    assert study.meta.clean == 1.0 and study.meta.floor == 0.4
    assert walked(studied, metric=Accuracy()).meta.clean == pytest.approx(2 / 3)
    for engine in ("auto", "plain"):
        assert walked(studied, compute=nk.Compute(engine=engine)).records == study.records
    (site,) = [s for s in nk.sites(model, x[:2]) if s.name == "0:linear#0"]
    for r in study.records:
        if r.site == site.name:
            hidden = nk.perturb(model[0](x), nk.Noise(add=r.level), seed=1, draws=[r.draw], site=site.id)
            best = model[2](model[1](hidden)).topk(2, -1).indices
            assert abs(r.correct - int((best == y[:, None]).any(-1).sum())) <= 1  # a tie, under another plan


def test_nothing_is_proved_by_the_order_of_scores(studied) -> None:
    study = walked(studied, levels=[1e-9, 1.0], plateaus=0.03)
    assert {r.status for r in study.records} <= {"evaluated", "settled"}


def test_a_search_finds_its_midpoints(studied) -> None:
    study = walked(studied, levels=None, draws=None, sites=["0"], search=nk.Search(0.2))
    (point,) = study.midpoints()
    assert point.status == "ok" and point.floor == 0.4


def test_a_reader_sees_its_name(studied, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib").use("agg")
    study = walked(studied)
    read = nk.Study.load(study.save(tmp_path / "study.json"))
    assert read == study and read.meta.metric == NAME and read.meta.plan["metric"] == NAME
    assert read.table().startswith("clean top-2 hits 1.0000 (300 of 300 rows)")
    assert read.plot().axes[0].get_ylabel() == "top-2 hits (fraction of rows)"
    page = read.report(tmp_path / "study.html").read_text()
    assert "<h2>Top-2 hits against noise level</h2>" in page and "metric=metric," in page
    assert "Without noise the top-2 hits is 1.0000." in page and "accuracy" not in page
    both = read.compare(walked(studied, metric=Accuracy())).table()
    assert both.startswith("clean top-2 hits and accuracy: a 1.0000, b 0.6667")
    assert "the studies differ: metric: top-2 hits and accuracy" in both


def test_the_accuracy_is_named_as_ever(studied) -> None:
    study = walked(studied, metric=Accuracy())
    assert study.meta.metric == "accuracy" and "metric" not in study.meta.plan


def test_a_store_tells_it_from_others(studied, tmp_path: Path) -> None:
    store = tmp_path / "a.db"
    study = walked(studied, store=store)
    assert walked(studied, store=store).records == study.records
    with pytest.raises(StoreError):
        walked(studied, store=store, metric=Accuracy())


def test_the_other_studies_measure_and_name_it(studied, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib").use("agg")
    model, (x, y) = studied
    data, given = (x, y), {"seed": 1, "metric": TopTwo()}
    found = chips(model, data, hardware=[nk.WeightNoise(add=0.01)], draws=3, **given)
    assert found.clean == 1.0 and found.table().startswith("clean top-2 hits 1.0000")
    sweep = sweep_formats(model, data, ["M7E6", "M10E6"], inputs=4, store=tmp_path / "s.db", **given)
    assert sweep.clean == 1.0 and plot_front(sweep).get_ylabel() == "top-2 hits / top-2 hits in float32"
    with pytest.raises(StoreError):
        sweep_formats(model, data, ["M7E6"], inputs=4, store=tmp_path / "s.db", seed=1)
    assert layer_formats(model, data, "M10E6", evaluations=1, **given).table().startswith("normalised top-2 hits 1.0")
    orders = order_sensitivity(model, data, nk.Serial(low=-8.0, high=8.0), permutations=2, **given)
    assert "\ntop-2 hits: none 1.0000" in orders.table() and orders.plot().axes[1].get_ylabel() == NAME
    stands = walk_parameter(
        model, data, lambda v: nk.hardware.DAC(bits=8, limit=v), [0.01, 1.0, 4.0], name="limit", larger="better",
        **given,
    )  # fmt: skip
    assert "clean top-2 hits 1.0000" in stands.table()


class Power(PerRow):
    """A measure of a user's own with a parameter, which it does not print."""

    name = "power"

    def __init__(self, p: float) -> None:
        self.p = p

    def parts(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(-1) - targets).abs().float() ** self.p


class OwnMetric(Hits):
    """As torchmetrics' do, it does not print its parameters."""

    def __init__(self, average: str) -> None:
        self.average = average
        super().__init__()


def test_equal_names_with_other_parameters_are_other_measures(studied, tmp_path: Path) -> None:
    """In a store, too: by what they hold, and by what functions do."""

    def of(scale: float) -> Any:
        return nk.metrics.ByRow(lambda y, t: scale * (y.argmax(-1) - t).abs().float(), False, "far")

    def other(scale: float) -> Any:
        return nk.metrics.ByRow(lambda y, t: scale * (y.argmax(-1) - t).square().float(), False, "far")

    pairs: list[tuple[Any, Any]] = [
        (Power(1.0), Power(2.0)), (of(1.0), of(2.0)), (of(1.0), other(1.0)), (OwnMetric("macro"), OwnMetric("micro")),
        (nk.metrics.NLL(), nk.metrics.NLL(ignore_index=0)), (nk.metrics.ECE(), nk.metrics.ECE(bins=5)),
        (Weighted("nll", "a"), Weighted("nll", "b")), (Weighted(of(1.0)), Weighted(of(2.0))),
    ]  # fmt: skip
    for k, (one, two) in enumerate(pairs):
        names = [named("f", metric) for metric in (one, two)]
        assert names[0].identity() != names[1].identity() and len({metric.name for metric in names}) == 1
        if k < 4:
            walked(studied, metric=one, store=tmp_path / f"{k}.db")
            with pytest.raises(StoreError, match=r"metric: .* in the file, .* here"):
                walked(studied, metric=two, store=tmp_path / f"{k}.db")
    assert of(1.0).identity() == of(1.0).identity() and Power(1.0).identity() == Power(1.0).identity()


def test_a_function_is_known_again_by_another_process(tmp_path: Path) -> None:
    code = (
        "from noisykernels.metrics.identity import of_function\n"
        "def f(y, t, k=2):\n    return y in {'a', 'b', 'c'}, [t for t in y], (lambda z: z + k)\n"
        "print(of_function(f))"
    )
    found = {
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True,
                       text=True, check=True).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1


def test_an_object_of_torchmetrics_serves_several_studies(studied) -> None:
    hits = Hits()
    hits.right = torch.tensor(7)
    first, again = walked(studied, metric=hits), walked(studied, metric=hits)
    assert first == again and int(hits.right) == 7
    assert [r.value for r in first.records] == pytest.approx(
        [r.value for r in walked(studied, metric="accuracy").records]
    )


@pytest.mark.parametrize(("metric", "code"), [
    ("nll", "metric='nll',"), ("top3", "metric='top3',"), (nk.metrics.NLL(ignore_index=2), None),
    (nk.metrics.Agreement(), "metric='agreement',"), (Power(1.0), "metric=metric,"),
    (Weighted("brier", "care"), "metric=nk.metrics.Weighted('brier', 'care'),"),
])  # fmt: skip
def test_a_report_has_the_code_that_asks_for_it(studied, tmp_path: Path, metric: Any, code: str | None) -> None:
    pytest.importorskip("matplotlib").use("agg")
    model, (x, y) = studied
    data = (x, y, torch.ones(len(y))) if isinstance(metric, Weighted) else (x, y)
    study = walked((model, data), metric=metric, at=nk.Drop(0.01))
    page = html.unescape(study.report(tmp_path / "a.html").read_text())
    assert (code or "metric=nk.metrics.NLL(ignore_index=2, dim=None),") in page
    given = re.search(r"metric=(.*),\n", page)
    assert given is not None
    if given[1] != "metric":
        assert named("f", eval(given[1], {"nk": nk})).identity() == named("f", metric).identity()
