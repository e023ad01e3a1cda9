"""Every measure by its definition, a plain loop; what it says of itself; what no measure can be."""

from __future__ import annotations

import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from measure_cases import CASES as ALIKE
from measure_cases import Case, Hits, correlation, mae, prepared
from torch import Tensor, nn
from weighted_cases import WEIGHTED

import noisykernels as nk
from noisykernels import metrics
from noisykernels._engine.judging import Tally, judged
from noisykernels.metrics import NAMES, Metric
from noisykernels.metrics.weighted import weighed

CASES = ALIKE | WEIGHTED
EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def targets_of(metric: Metric, outputs: Tensor, labels: Any) -> Any:
    return weighed(outputs if metric.against_clean else of(labels), getattr(labels, "weights", None))


def of(labels: Any) -> Tensor:
    """Without their weights."""
    found: Tensor = getattr(labels, "targets", labels)
    return found


def test_no_measure_is_left_out() -> None:
    words = {case.metric for case in CASES.values() if isinstance(case.metric, str)}
    assert set(NAMES) <= words
    known = {c for c in map(metrics.__dict__.get, metrics.__all__) if isinstance(c, type) and hasattr(c, "of_rows")}
    bases = {metrics.Metric, metrics.PerRow, metrics.OfSums}
    assert known - bases <= {type(prepared(case)[0]) for case in CASES.values()}
    identities = [metric.identity() for metric in NAMES.values()]
    assert len(set(identities)) == len(identities) == len({metric.name for metric in NAMES.values()})


@EACH
def test_a_value_is_that_of_a_plain_loop(case: Case) -> None:
    metric, clean, labels = prepared(case)
    noisy = clean + 0.5 * torch.randn(3, *clean.shape, generator=torch.Generator().manual_seed(1))
    targets = targets_of(metric, clean, labels)
    metric.check_clean("f", clean, targets)
    for rows in (len(clean), 7):  # all at once, and batch after batch
        tally = Tally(metric, len(clean), copies=3)
        for low in range(0, len(clean), rows):
            tally.add(low, noisy[:, low : low + rows], targets[low : low + rows])
        expected = [case.value(one, of(targets)) for one in noisy]
        assert tally.values("f") == pytest.approx(expected, rel=2e-5, abs=1e-7)


@EACH
def test_a_number_of_a_row_does_not_depend_on_its_company(case: Case) -> None:
    metric, clean, labels = prepared(case)
    targets = targets_of(metric, clean, labels)
    noisy = clean + torch.randn(4, *clean.shape, generator=torch.Generator().manual_seed(2))
    numbers = judged(metric, noisy.unflatten(0, (2, 2)), targets, 0, leading=2).numpy()
    assert numbers.dtype == metric.law.empty(1, 1, 1).dtype
    if metric.law.block == 1:
        assert numbers.shape == (2, 2, len(clean))
        for k in (0, 17):
            one = metric.of_rows(noisy[:, k : k + 1], targets[k : k + 1]).numpy()
            assert one[:, 0] == pytest.approx(numbers.reshape(4, -1)[:, k], rel=1e-5, abs=1e-6)
    law = metric.law
    answer = numbers
    back = law.unpacked(json.loads(json.dumps(law.packed(answer))), answer.shape[:3])
    assert back.tobytes() == answer.tobytes()
    if math.isfinite(law.largest_variance):
        assert float(law.numbers(answer).var()) <= law.largest_variance
    again = pickle.loads(pickle.dumps(metric)) if case.metric not in (mae, correlation) else metric
    assert again.identity() == metric.identity() and again.law == metric.law


@EACH
def test_a_number_that_is_none_is_missing(case: Case) -> None:
    metric, clean, labels = prepared(case)
    targets = targets_of(metric, clean, labels)
    noisy = clean.clone().unsqueeze(0)
    noisy[0, 3] = float("nan")
    with np.errstate(all="ignore"):
        missing = metric.law.missing(judged(metric, noisy, targets, 0, leading=1).numpy())
    assert missing[0, 3 if metric.law.block == 1 else 0] and missing.sum() == 1


@EACH
def test_it_says_its_direction_law_range_floor_and_unit(case: Case) -> None:
    """Clean outputs are better than those of other rows, which are about the floor."""
    metric, clean, labels = prepared(case)
    targets = targets_of(metric, clean, labels)
    tally = Tally(metric, len(clean), copies=40)
    turned = torch.stack([clean[torch.randperm(len(clean), generator=torch.Generator().manual_seed(i))]
                          for i in range(39)])  # fmt: skip
    tally.add(0, torch.cat([clean.unsqueeze(0), turned]), targets)
    (own, *others), sign = tally.values("f"), 1 if metric.higher_is_better else -1
    assert sign * own > sign * np.mean(others)
    floor = metric.floor(tuple(clean.shape[1:]), labels)
    assert isinstance(metric.name, str) and metric.name and isinstance(metric.unit, str)
    assert floor is None or math.isfinite(floor)
    assert metric.number(float(metric.value(np.float64(0.5)))) == pytest.approx(0.5) if metric.law.block == 1 else True


def test_large_outputs_are_judged_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    from noisykernels.metrics import rows

    for case in (CASES["perplexity"], CASES["kl"], CASES["token_accuracy"]):
        metric, clean, labels = prepared(case)
        targets = targets_of(metric, clean, labels)
        noisy = clean + torch.randn(3, *clean.shape)
        whole = metric.of_rows(noisy, targets)
        with monkeypatch.context() as patch:
            patch.setattr(rows, "SLICE", 100)
            assert torch.allclose(metric.of_rows(noisy, targets), whole, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------ by name


def test_names_objects_and_near_names() -> None:
    for name in ("nll", " NLL ", "token-accuracy"):
        assert metrics.names.named("f", name).name in ("nll", "token_accuracy")
    with pytest.raises(ValueError, match="f: metric 'perplex' is not known; near it is 'perplexity'; there are"):
        metrics.names.named("f", "perplex")
    with pytest.raises(TypeError, match=r"f: metric must be an object, got the class NLL: write NLL\(\)"):
        metrics.names.named("f", metrics.NLL)
    with pytest.raises(TypeError, match=r"f: metric must be an object, got the class TopK: write TopK\(\.\.\.\)"):
        metrics.names.named("f", metrics.TopK)
    for word, other in (("IoU", "mean_iou"), ("cross-entropy", "nll"), ("R2", "relative_mse"), ("ppl", "perplexity")):
        with pytest.raises(ValueError, match=f"f: metric {word!r} is not known; it may be {other!r}"):
            metrics.names.named("f", word)
    for wrong in (3, None, [1]):
        with pytest.raises(TypeError, match="f: metric must be a name such as 'nll', a Metric such as"):
            metrics.names.named("f", wrong)


def problem(metric: Any, outputs: int = 5, targets: Any = None) -> Any:
    """A short walk."""
    torch.manual_seed(0)
    model, x = nn.Linear(6, outputs), torch.randn(40, 6)
    y = torch.arange(40) % max(2, outputs) if targets is None else targets
    return nk.walk(model, (x, y), noise=nk.Noise(add=1.0), levels=[1.0], draws=1, seed=1, metric=metric)


ONE = torch.zeros(40, dtype=torch.int64)
HALF = torch.arange(40) % 2
NUMBERS = torch.linspace(-1, 1, 40)
REFUSED: dict[str, tuple[Any, int, Any, str]] = {
    "accuracy of one output": ("accuracy", 1, ONE, "accuracy of a model with one output is the same at any noise: wri"),
    "nll of one output": ("nll", 1, ONE, "nll of a model with one output is the same at any noise"),
    "kl of one output": ("kl", 1, ONE, "kl of a model with one output"),
    "cosine of one output": ("cosine", 1, NUMBERS, "cosine of a single output is its sign alone: write metric='mse'"),
    "top5 of five": ("top5", 5, None, "top5 of 5 classes is 1 whatever the model gives"),
    "iou of one class": ("mean_iou", 5, ONE, "mean_iou needs labels of two classes or more, got \\[0\\]"),
    "f1 of one class": ("f1", 5, ONE, "f1 needs labels of two classes or more"),
    "auroc of one class": ("auroc", 1, ONE, "auroc needs labels of both classes, got 0 alone"),
    "targets all the same": ("relative_mse", 1, torch.ones(40) / 10, "relative_mse needs targets that differ"),
    "several logits": ("binary_accuracy", 3, torch.zeros(40, 3), "binary_accuracy needs one logit for each row"),
    "one logit": ("multilabel", 1, HALF, "multilabel needs several logits for each row"),
    "labels of three": ("binary_accuracy", 1, torch.arange(40) % 3, "binary_accuracy needs labels of 0 and 1"),
    "NaN targets": ("mse", 1, NUMBERS.log(), "targets must be finite, got NaN or infinity"),
    "targets of another shape": ("mse", 3, NUMBERS, "mse needs targets of the outputs' shape"),
    "numbers for classes": ("nll", 5, NUMBERS, "nll needs whole-number labels"),
    "classes beyond": ("nll", 5, torch.arange(40), "labels must lie in 0..4, or be -100"),
    "positions for rows": ("nll", 5, torch.zeros(40, 7, dtype=torch.int64), "outputs must be of the targets' shape"),
    "nothing that counts": ("nll", 5, ONE - 100, "nll needs at least one target that counts"),
    "a function that fails": (lambda y, t: y @ t, 5, None, "metric <lambda> fails for outputs"),
    "a function of another length": (lambda y, t: y.flatten(), 5, None, "must give one number for each of 40 rows"),
    "a function without direction": (lambda y, t: y.square().mean(-1), 5, None, "which values of metric <lambda> are"),
    "a function that mixes rows": (
        metrics.ByRow(lambda y, t: (y - y.mean(0)).square().sum(-1), False, "mixed"), 5, None, "mixed mixes rows",
    ),
    "a function of their order": (
        metrics.ByRow(lambda y, t: y.cumsum(0).sum(-1), False, "ordered"), 5, None, "ordered mixes rows",
    ),
    "a function of chance": (
        metrics.WholePass(lambda y, t: torch.rand(()), True, "dice"), 5, None, "dice gives another number",
    ),
    "a function that fails later": (
        metrics.ByRow(lambda y, t: y @ t, False, "late"), 5, None, "metric late fails for outputs .* RuntimeError: ",
    ),
    "a function of nothing": (metrics.ByRow(lambda y, t: None, False, "void"), 5, None, "void: .* must give numbers"),
    "a function of words": (lambda y, t: "a", 5, None, "<lambda>: the function must give numbers, got 'a'"),
    "complex numbers": (lambda y, t: y.mean(-1) + 1j, 5, None, "the function must give real numbers, got"),
    "a function that writes": (
        metrics.ByRow(lambda y, t: y.sub_(1).square().mean(-1), False, "writer"), 5, None,
        "metric writer changes the outputs that it is given: let it work on a copy",
    ),
    "a function that writes targets": (
        metrics.ByRow(lambda y, t: t.add_(1) + y.mean(-1), False, "writer"), 5, None, "changes the targets",
    ),
    "another number each time": (
        metrics.ByRow(lambda y, t: y.mean(-1) + torch.rand(len(y)), False, "dice"), 5, None,
        "metric dice gives other numbers for the same outputs each time",
    ),
    "rows for a pass": (metrics.WholePass(mae, False), 3, torch.randn(40, 3), "mae: the function must give one number"),
    "infinite without noise": (
        metrics.ByRow(lambda y, t: 1 / (t * 0.0 + (y[:, 0] > 9)), False, "far"), 5, None,
        "without noise the far of 40 of 40 rows is infinite or NaN",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_told_from_chance_or_measured_is_refused(case: str) -> None:
    metric, outputs, targets, said = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=said) as caught:
        problem(metric, outputs, targets)
    assert "walk: " in str(caught.value) or case == "rows for a pass"


def test_a_function_tells_its_kind_and_direction_by_itself() -> None:
    _, y = CASES["a function of rows"].data()
    found = metrics.functions.found_out("f", mae, y + 0.1, y)
    assert isinstance(found, metrics.ByRow) and not found.higher_is_better and found.name == "mae"
    found = metrics.functions.found_out("f", correlation, y, y)
    assert isinstance(found, metrics.WholePass) and found.higher_is_better


def test_classes_first_or_last_is_asked_where_shapes_do_not_tell() -> None:
    axis = metrics.rows.class_axis
    assert axis("f", (5,), (), None) == -1 and axis("f", (3, 4, 5), (4, 5), None) == 0
    assert axis("f", (4, 5, 3), (4, 5), None) == -1 and axis("f", (4, 4), (4,), 1) == 0
    with pytest.raises(ValueError, match=r"say dim=1 or dim=-1 of the metric"):
        axis("f", (4, 4), (4,), None)


def test_objects_of_torchmetrics_need_sums() -> None:
    class Kept(Hits):
        def __init__(self) -> None:
            super().__init__()
            self._reductions["right"] = None

    with pytest.raises(TypeError, match=r"must have states that reduce by 'sum', got Kept with right"):
        metrics.Torchmetrics(Kept())
    with pytest.raises(TypeError, match="must be one of torchmetrics"):
        metrics.Torchmetrics(3)
    silent = Hits()
    silent.higher_is_better = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match="does not say its direction"):
        metrics.Torchmetrics(silent)
    assert metrics.Torchmetrics(silent, higher_is_better=True).higher_is_better
