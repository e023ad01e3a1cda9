"""Text as transformers' users hold it: labels that are the inputs, padding that is measured, decoders fed by labels."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import noisykernels as nk
from noisykernels.metrics import NLL, Weighted
from noisykernels.walking import walk

TOKENS = 11
GRID = {"noise": nk.Noise(add=1.0), "levels": [0.1, 1.0], "draws": 2, "seed": 1}


class Following(nn.Module):
    """Says that each token is followed by the one after it in the alphabet."""

    def __init__(self, ahead: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, TOKENS)
        self.head = nn.Linear(TOKENS, TOKENS, bias=False)
        with torch.no_grad():
            self.embedding.weight.copy_(4 * torch.eye(TOKENS))
            self.head.weight.copy_(torch.eye(TOKENS).roll(ahead, 0))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.head(self.embedding(input_ids))


class Translating(nn.Module):
    """Gives what its decoder is given; made of the labels as transformers' models make it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(TOKENS, 6), nn.Linear(6, TOKENS)

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        return F.pad(labels.masked_fill(labels == -100, 1)[:, :-1], (1, 0), value=0)

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor | None = None) -> Tensor:
        decoder_input_ids = input_ids if decoder_input_ids is None else decoder_input_ids  # as Bart does
        return self.head(self.embedding(decoder_input_ids) + self.embedding(input_ids).mean(1, keepdim=True))


def _text() -> Tensor:
    return (torch.arange(6) + torch.arange(12)[:, None]) % TOKENS


@pytest.mark.parametrize("metric", ["nll", "perplexity", "token_accuracy", "brier", Weighted("nll", "attention_mask")])
@pytest.mark.parametrize("form", ["dict", "pair", "loader"])
def test_labels_that_are_the_inputs_are_refused_where_the_model_foretells(metric, form):
    """Transformers shifts labels inside of its loss; a measure of outputs beside them would be silently wrong."""
    ids = _text()
    data = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    if form == "pair" and not isinstance(metric, Weighted):
        data = (ids, ids)
    elif form == "loader":
        data = [{name: values[part] for name, values in data.items()} for part in (slice(0, 5), slice(5, 12))]
    with pytest.raises(ValueError, match=r"walk: labels must be the tokens that follow.*got the inputs themselves"):
        walk(Following(), data, metric=metric, at=nk.Value(0.5), **GRID)


def test_labels_with_padding_left_out_are_recognised_too():
    ids, mask = _text(), torch.ones(12, 6)
    mask[::2, 4:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    with pytest.raises(ValueError, match="got the inputs themselves"):
        walk(Following(), {"input_ids": ids, "attention_mask": mask, "labels": labels}, metric="nll",
             at=nk.Ratio(2), **GRID)  # fmt: skip


def test_the_remedy_that_the_error_names_works():
    ids = _text()
    labels = F.pad(ids[:, 1:], (0, 1), value=-100)
    study = walk(Following(), {"input_ids": ids, "labels": labels}, metric="nll", at=nk.Ratio(2), **GRID)
    expected = F.cross_entropy(Following()(ids[:, :-1]).detach().flatten(0, 1), ids[:, 1:].flatten())
    assert study.meta.clean == pytest.approx(float(expected), rel=1e-6)


def test_a_model_that_gives_its_input_again_may_have_it_as_labels():
    ids = _text()
    assert walk(Following(ahead=0), (ids, ids), metric="token_accuracy", **GRID).meta.clean == 1


@pytest.mark.parametrize("many", [1, 5])
def test_a_decoder_is_given_what_its_labels_make(many):
    """Without it, some of transformers' models feed their decoder with the encoder's inputs, without a word."""
    torch.manual_seed(0)
    model, ids, labels = Translating(), _text(), torch.randint(2, TOKENS, (12, 6))
    labels[::3, 4:] = -100
    grid = {**GRID, "metric": "perplexity", "at": nk.Ratio(1.05)}
    parts = zip(ids.tensor_split(many), labels.tensor_split(many), strict=True)
    batches = [{"input_ids": i, "labels": t} for i, t in parts]
    study = walk(model, batches if many > 1 else batches[0], **grid)
    given = {"input_ids": ids, "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels)}
    assert study.records == walk(model, {**given, "labels": labels}, **grid).records
    assert study.meta.clean == pytest.approx(
        float(F.cross_entropy(model(**given).flatten(0, 1), labels.flatten()).exp())
    )


def test_labels_of_a_copy_beside_a_decoder_are_no_mistake():
    ids = _text()
    assert (
        walk(Translating(), {"input_ids": ids, "labels": ids}, metric="nll", at=nk.Ratio(1.05), **GRID).meta.clean > 0
    )


@pytest.mark.parametrize(
    "metric, labelled, told",
    [
        ("kl", False, "8 of 72"),
        ("token_agreement", False, "8 of 72"),
        ("nll", True, "8 of 72"),
        ("f1", True, "8 of 72"),
        (Weighted("kl", "attention_mask"), False, None),
        (Weighted("nll", "attention_mask"), True, None),
    ],
    ids=["kl", "agreement", "nll", "f1", "weighted kl", "weighted nll"],
)
def test_padding_that_is_measured_is_told(metric, labelled, told):
    ids, mask = _text(), torch.ones(12, 6)
    mask[::3, 4:] = 0
    data = {"input_ids": ids, "attention_mask": mask}
    if labelled:
        data["labels"] = ids.roll(-1, 1)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        walk(Following(), data, metric=metric, at=nk.Value(1.0 if labelled and metric != "f1" else 0.5), **GRID)
    words = [str(w.message) for w in found if "padding" in str(w.message)]
    assert len(words) == (told is not None)
    assert all(w.startswith(f"walk: {told} positions that ") for w in words)
    assert all(w.filename == __file__ for w in found if "padding" in str(w.message))


def test_padding_that_labels_leave_out_is_not_told():
    ids, mask = _text(), torch.ones(12, 6)
    mask[::3, 4:] = 0
    labels = ids.roll(-1, 1).masked_fill(mask == 0, -100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        walk(Following(), {"input_ids": ids, "attention_mask": mask, "labels": labels}, metric=NLL(), at=nk.Ratio(2),
             **GRID)  # fmt: skip
