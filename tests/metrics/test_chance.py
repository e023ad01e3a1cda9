"""What a model that knows nothing of the input does as well is refused, of every measure; honest uses are not."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from measure_cases import Hits
from torch import Tensor, nn

import noisykernels as nk
from noisykernels import metrics
from noisykernels.experiments import chips, order_sensitivity, sweep_formats
from noisykernels.metrics import Weighted

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
ONE, TWO = torch.full((40,), 3), torch.arange(40) % 5


def model(*shape: int) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, int(torch.tensor(shape).prod())), nn.Unflatten(1, shape))


def walked(of: nn.Module, data: Any, metric: Any) -> nk.Study:
    return nk.walk(of, data, metric=metric, noise=nk.Noise(add=1.0), levels=[1.0], draws=1, seed=1)


class Constant(nn.Module):
    """A model that knows nothing of the input."""

    def __init__(self, same: bool) -> None:
        super().__init__()
        self.net, self.same = nn.Linear(6, 5), same

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)
        return 0 * y + torch.arange(5.0) if self.same else y.sigmoid() + 9 * torch.arange(5.0)


REFUSED: dict[str, tuple[Any, tuple[int, ...], Any]] = {
    "top2": ("top2", (5,), ONE),
    "nll": ("nll", (5,), ONE),
    "perplexity": ("perplexity", (4, 5), ONE[:, None].expand(40, 4)),
    "brier": ("brier", (5,), ONE),
    "ece": ("ece", (5,), ONE),
    "token_accuracy": ("token_accuracy", (4, 5), ONE[:, None].expand(40, 4)),
    "one class that counts": ("token_accuracy", (2, 5), torch.stack([ONE, torch.full((40,), -100)], 1)),
    "binary_accuracy": ("binary_accuracy", (1,), ONE > 0),
    "multilabel": ("multilabel", (3,), torch.tensor([1, 0, 1]).expand(40, 3)),
    "jaccard": ("jaccard", (3,), torch.tensor([1, 0, 1]).expand(40, 3)),
    "relative_mse": ("relative_mse", (3,), torch.tensor([0.1, 0.2, 0.3]).expand(40, 3)),
    "cosine": ("cosine", (3,), torch.tensor([0.1, 0.2, 0.3]).expand(40, 3)),
    "one direction": ("cosine", (3,), torch.arange(1, 41)[:, None] * torch.tensor([0.1, 0.2, 0.3])),
    "torchmetrics": (Hits(), (5,), ONE),
    "weighted": (Weighted("nll"), (5,), ONE),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_targets_that_are_all_the_same(case: str) -> None:
    metric, shape, targets = REFUSED[case]
    data = (X, targets, torch.ones(40)) if isinstance(metric, Weighted) else (X, targets)
    with pytest.raises(ValueError, match=r"walk: .* needs .* that differ, to be told from chance: all are"):
        walked(model(*shape), data, metric)


def test_every_study_refuses_them() -> None:
    given: dict[str, Any] = {"seed": 1, "metric": "nll"}
    studies = {
        "vote": lambda data: nk.vote(model(5), data, noise=nk.Noise(add=1.0), draws=2, **given),
        "chips": lambda data: chips(model(5), data, noise=nk.Noise(add=1.0), draws=2, **given),
        "sweep_formats": lambda data: sweep_formats(model(5), data, ["M7E6"], **given),
        "order_sensitivity": lambda data: order_sensitivity(model(5), data, nk.Serial(), permutations=2, **given),
    }
    for op, study in studies.items():
        with pytest.raises(ValueError, match=f"{op}: nll needs labels that differ"):
            study((X, ONE))


@pytest.mark.parametrize("metric", ["kl", "agreement", "token_agreement", metrics.MSE("clean"), metrics.Cosine("clean"),
                                    metrics.RelativeMSE("clean")], ids=str)  # fmt: skip
def test_outputs_that_are_all_the_same(metric: Any) -> None:
    with pytest.raises(ValueError, match="needs outputs that differ, to be told from chance: without noise"):
        walked(Constant(same=True), (X, ONE), metric)
    if metric in ("agreement", "token_agreement"):  # of which classes alone count
        with pytest.raises(ValueError, match="the class with the highest score is the same for all rows"):
            walked(Constant(same=False), (X, ONE), metric)
    else:
        walked(Constant(same=False), (X, ONE), metric)


def test_vectors_of_zeros_point_nowhere() -> None:
    targets = torch.randn(40, 3)
    targets[4] = 0
    with pytest.raises(ValueError, match="cosine needs targets that point somewhere, got 1 of zeros"):
        walked(model(3), (X, targets), "cosine")
    weights = torch.ones(40)
    weights[4] = 0
    walked(model(3), (X, targets, weights), Weighted("cosine"))
    with pytest.raises(ValueError, match="cosine needs outputs that point somewhere, got 40 of zeros without noise"):
        walked(nn.Sequential(model(3), nn.Threshold(1e9, 0.0)), X, metrics.Cosine("clean"))


def test_honest_uses_are_run() -> None:
    """A residual that should be 0; a constant offset; few rows, alike by chance; a model that is always right."""
    walked(model(3), (X, torch.zeros(40, 3)), "mse")
    walked(model(1), (X, torch.ones(40)), "mse")
    walked(model(1), (X, X[:, 0] + 100), "relative_mse")
    walked(model(5), (X[:4], ONE[:4]), "accuracy")
    sure = Constant(same=False)
    assert walked(sure, (X, ONE + 1), "accuracy").meta.clean == 1
    walked(model(5), (X, TWO), metrics.ByRow(lambda y, t: y.square().mean(-1), False, "power"))


def test_labels_of_one_class_are_warned_of_for_the_accuracy() -> None:
    """They may be what the model itself says; not of few rows, nor where others are measured."""
    told = "accuracy of labels that are all 3 cannot be told from chance"
    with pytest.warns(UserWarning, match=f"walk: {told}"):
        walked(model(5), (X, ONE), "accuracy")
    with pytest.warns(UserWarning, match=f"chips: {told}"):
        chips(model(5), (X, ONE), noise=nk.Noise(add=1.0), draws=2, seed=1)
    weights = torch.where(TWO == 3, 1.0, 0.0).repeat(2)
    with pytest.warns(UserWarning, match=f"walk: {told}"):
        walked(model(5), (torch.cat([X, X]), torch.cat([TWO, TWO]), weights), Weighted("accuracy"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        walked(model(5), (X[:9], ONE[:9]), "accuracy")
        walked(model(5), (X, TWO), "accuracy")
        walked(model(5), (X, ONE), "kl")


def test_relative_mse_against_the_outputs_without_noise() -> None:
    """In parts of their variance: with a floor of 1, in walks, searches and chips, by either engine."""
    net = model(3)
    with torch.no_grad():
        clean = net(X).double()
    variance = float(clean.var(0, correction=0).mean())
    power, relative = (walked(net, X, m) for m in (metrics.MSE("clean"), metrics.RelativeMSE("clean")))
    assert [r.value for r in relative.records] == pytest.approx([r.value / variance for r in power.records], rel=1e-5)
    assert relative.meta.floor == 1 and relative.meta.clean == 0
    found = nk.walk(net, X, metric=metrics.RelativeMSE("clean"), noise=nk.Noise(add=1.0), seed=1, sites=[1],
                    search=nk.Search(0.2))  # fmt: skip
    (m,) = found.midpoints()
    assert m.level == pytest.approx((variance / 2) ** 0.5, rel=0.2) and m.target == 0.5
    of_chips = [chips(net, X, noise=nk.Noise(add=1.0), draws=2, seed=1, metric=metric).mean
                for metric in (metrics.MSE("clean"), metrics.RelativeMSE("clean"))]  # fmt: skip
    assert of_chips[1] == pytest.approx(of_chips[0] / variance, rel=1e-5)
    with pytest.raises(ValueError, match="RelativeMSE: decibels need targets"):
        metrics.RelativeMSE("clean", decibels=True)
