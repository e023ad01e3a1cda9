"""Studies of models with several inputs, inputs by name, and outputs that are no tensor; both engines."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from data_look_alikes import Encoder, Encoding, TwoInputs, encoded, pictures
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import noisykernels as nk

GRID: dict[str, Any] = dict(levels=[0.5, 2.0], draws=2, seed=1)
FEW: dict[str, Any] = dict(levels=[1.0], draws=2, sites=["input*", "head"])


def walked(model: nn.Module, data: Any, engine: str = "shared", **more: Any) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # every site is shared, and nothing is left out
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than processors
        warnings.filterwarnings(
            "ignore", message=".* cannot be told from chance"
        )  # labels of what the model itself says
        given = {"noise": nk.Noise(add=1.0), "compute": nk.Compute(engine=engine)} | GRID | more
        return list(nk.walk(model.eval(), data, **given).records)


def by_hand(call: Callable[[slice], Tensor], model: nn.Module, labels: Tensor, example: Any) -> dict[Any, int]:
    """Correct predictions at each site, level and draw, by injecting and looping."""
    found = {}
    for site in nk.sites(model, example):
        for level in GRID["levels"]:
            with nk.inject(model, nk.Noise(add=level), where=[site.name], example_input=example):
                for draw in range(GRID["draws"]):
                    with nk.noise_state(model, seed=1, draws=[draw], rows=torch.arange(len(labels))), torch.no_grad():
                        found[site.name, level, draw] = int((call(slice(None)).argmax(1) == labels).sum())
    return found


@pytest.mark.parametrize("engine", ["shared", "plain"])
def test_two_inputs_are_a_loop_over_the_model(engine: str) -> None:
    image, numbers, labels = pictures()
    model = TwoInputs().eval()
    expected = by_hand(lambda s: model(image[s], numbers[s]), model, labels, (image[:2], numbers[:2]))
    records = walked(model, ((image, numbers), labels), engine)
    assert {(r.site, r.level, r.draw): r.correct for r in records} == expected
    assert {"input", "input#1"} <= {r.site for r in records}


@pytest.mark.parametrize("engine", ["shared", "plain"])
def test_inputs_by_name_are_a_loop_over_the_model(engine: str) -> None:
    tokens, mask, labels = encoded()
    model = Encoder().eval()
    example = {"input_ids": tokens[:2], "attention_mask": mask[:2]}
    expected = by_hand(lambda s: model(tokens[s], mask[s]).logits, model, labels, example)
    records = walked(model, {"input_ids": tokens, "attention_mask": mask, "labels": labels}, engine)
    assert {(r.site, r.level, r.draw): r.correct for r in records} == expected


def test_every_form_of_several_inputs_means_the_same() -> None:
    image, numbers, labels = pictures()
    whole = TensorDataset(image, numbers, labels)

    def batches(number: int) -> Iterator[Any]:
        for i in range(0, 40, 8):
            a, b, y = image[i : i + 8], numbers[i : i + 8], labels[i : i + 8]
            yield [((a, b), y), ([a, b], y), ({"image": a, "numbers": b}, y), Encoding(numbers=b, label=y, image=a),
                   ((a.numpy(), b.numpy()), y.tolist())][number]  # fmt: skip

    expected = walked(TwoInputs(), ((image, numbers), labels), **FEW)
    for number in range(5):
        assert walked(TwoInputs(), batches(number), **FEW) == expected, number
    pairs = [((a, b), y) for a, b, y in whole]
    for workers in (0, 1, 3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loader = DataLoader(pairs, 8, num_workers=workers)
        assert walked(TwoInputs(), loader, **FEW) == expected
    assert walked(TwoInputs(), DataLoader(pairs, 8), compute=nk.Compute(executor=1), **FEW) == expected


def test_a_walk_over_names_is_kept_and_goes_on(tmp_path: Any) -> None:
    tokens, mask, labels = encoded()
    data = {"input_ids": tokens, "attention_mask": mask, "labels": labels}
    few = {"levels": [1.0], "sites": ["head", "norm"]}
    expected = walked(Encoder(), data, **few)
    for _ in range(2):
        assert walked(Encoder(), data, store=tmp_path / "a.store", **few) == expected
    with pytest.raises(nk.walking.StoreError, match="inputs"):
        walked(Encoder(), data | {"attention_mask": torch.ones_like(mask)}, store=tmp_path / "a.store", **few)
    with pytest.raises(nk.walking.StoreError, match="plan"):
        walked(Encoder(), data, store=tmp_path / "a.store", output="logits")


def test_output_says_which_tensor_is_measured() -> None:
    tokens, mask, labels = encoded()
    data = {"input_ids": tokens, "attention_mask": mask, "labels": labels}
    few = {"levels": [1.0], "sites": ["head", "norm"]}
    expected = walked(Encoder(), data, **few)
    for output in ("logits", 1, -1, lambda out: out.logits):
        assert walked(Encoder(), data, output=output, **few) == expected
    assert walked(Encoder(), data, output=lambda out: -out["logits"], **few) != expected
    with pytest.raises(
        ValueError, match=r"walk: output='scores' must say which tensor it is, got a Output of 'hidden'"
    ):
        walked(Encoder(), data, output="scores")
    for wrong in (2.5, ["logits"]):
        with pytest.raises(TypeError, match="walk: output must be a key, an index or a function"):
            walked(Encoder(), data, output=wrong)


class Tuple(nn.Module):
    def __init__(self, given: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.given = nn.Linear(4, 3), given

    def forward(self, x: Tensor) -> Any:
        return self.given(self.layer(x))


@pytest.mark.parametrize("engine", ["shared", "plain"])
def test_without_output_the_logits_or_the_first_tensor(engine: str) -> None:
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(30) % 3
    forms: list[Callable[[Tensor], Any]] = [
        lambda s: s, lambda s: (s, s[:, :1]), lambda s: {"loss": None, "scores": s}, lambda s: [[s]],
        lambda s: {"a": -s, "logits": s},
    ]  # fmt: skip
    found = [walked(Tuple(form), (x, y), engine) for form in forms]
    assert all(records == found[0] for records in found)


def test_forward_says_how_the_model_is_called() -> None:
    image, numbers, labels = pictures()
    expected = walked(TwoInputs(), ((image, numbers), labels))
    calls: list[tuple[Any, Callable[..., Any]]] = [
        (((image, numbers), labels), lambda model, batch: model(*batch)),
        ({"x": image, "z": numbers, "label": labels}, lambda model, batch: model(batch["x"], numbers=batch["z"])),
        (((numbers, image), labels), lambda model, batch: model(batch[1].view(-1, 1, 4, 4), batch[0])),
    ]
    for number, (data, forward) in enumerate(calls):
        for engine in ("shared", "plain"):
            found = walked(TwoInputs(), data, engine, forward=forward)
            if number < 2:
                assert found == expected
            else:  # which input is the first is the data's to say
                inner = {(r.site, r.level, r.draw, r.correct) for r in found if "input" not in r.site}
                assert inner == {(r.site, r.level, r.draw, r.correct) for r in expected if "input" not in r.site}
    with pytest.raises(TypeError, match="walk: forward must be a function"):
        walked(TwoInputs(), calls[0][0], forward="model")


@pytest.mark.parametrize("study", ["vote", "chips", "walk_parameter", "sweep_formats", "order_sensitivity", "search"])
def test_every_study_takes_names(study: str) -> None:
    tokens, mask, labels = encoded()
    named = {"input_ids": tokens, "attention_mask": mask, "labels": labels}
    run: dict[str, Callable[..., Any]] = {
        "vote": lambda d, **k: nk.vote(Encoder().eval(), d, noise=nk.Noise(add=1.0), draws=3, seed=1, **k).curves,
        "chips": lambda d, **k: nk.chips(
            Encoder().eval(), d, hardware=[nk.WeightNoise(add=1.0)], draws=3, seed=1, **k
        ).values.tolist(),
        "walk_parameter": lambda d, **k: nk.walk_parameter(
            Encoder().eval(), d, lambda b: [nk.hardware.DAC(int(b), "row")], [2, 4], seed=1, **k
        ).records,
        "sweep_formats": lambda d, **k: nk.experiments.sweep_formats(
            Encoder().eval(), d, ["M3E4"], seed=1, **k
        ).results,
        "order_sensitivity": lambda d, **k: nk.experiments.order_sensitivity(
            Encoder().eval(), d, nk.arithmetic.Serial(low=-1.0, high=1.0), permutations=2, seed=1, **k
        ),
        "search": lambda d, **k: nk.walk(Encoder().eval(), d, noise=nk.Noise(add=1.0), seed=1,
                                         search=nk.Search(rel_ci=0.3), **k).records,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = str(run[study](named))
        assert str(run[study](iter([({"input_ids": tokens, "attention_mask": mask}, labels)]))) == expected
        called = run[study](named, forward=lambda model, batch: model(**batch), output="logits")
        assert str(called) == expected


def test_inputs_of_different_sizes_are_told_by_name() -> None:
    image, numbers, labels = pictures()
    with pytest.raises(ValueError, match=r"walk: inputs of data must .* got input 1 of 40, input 2 of 7"):
        walked(TwoInputs(), ((image, numbers[:7]), labels))
    with pytest.raises(ValueError, match=r"walk: inputs of data must .* got 'image' of 40, 'numbers' of 7"):
        walked(TwoInputs(), {"image": image, "numbers": numbers[:7], "labels": labels})
    with pytest.raises(ValueError, match=r"the model's forward, image, numbers, got 3 by position; forward="):
        walked(TwoInputs(), ((image, numbers, numbers), labels))
    with pytest.raises(ValueError, match=r"the model's forward, image, numbers, got 1 by position; forward="):
        walked(TwoInputs(), (image, labels))
    with pytest.raises(ValueError, match=r"labels under one of 'labels', 'label', 'targets', 'target', got {'image'"):
        walked(TwoInputs(), {"image": image, "numbers": numbers})
