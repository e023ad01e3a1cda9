"""The metric that there is and its law: right, wrong and NaN rows, to the byte that a store keeps."""

from __future__ import annotations

import base64
import tracemalloc
import zlib

import numpy as np
import pytest
import torch

from noisykernels.metrics import ACCURACY, BINARY, NAN, Accuracy


def test_rows_are_right_wrong_or_nan() -> None:
    scores = torch.tensor([[[0.1, 0.9, 0.0], [5.0, 1.0, 2.0]], [[1.0, float("nan"), 0.0], [0.0, 0.0, 1.0]]])
    found = ACCURACY.of_rows(scores, torch.tensor([1, 2]))
    assert found.dtype == torch.int8 and found.tolist() == [[1, 0], [NAN, 1]]
    assert BINARY.numbers(found.numpy()).tolist() == [[1, 0], [0, 1]]
    assert BINARY.missing(found.numpy()).tolist() == [[False, False], [True, False]]


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 7), (2, 5, 8), (1, 3, 250)])
def test_packed_answers_come_back(shape: tuple[int, ...]) -> None:
    answer = np.random.default_rng(0).integers(-1, 2, shape).astype(np.int8)
    result = BINARY.packed(answer)
    back = BINARY.unpacked(result, shape)
    assert back.dtype == np.int8 and (back == answer).all() and set(result) == {"shape", "correct", "nan"}


def bits(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content)).decode()


GOOD = {"shape": [3, 2, 40], "correct": bits(bytes(30)), "nan": bits(bytes(30))}
MISFITS = {
    "a shape that would be broadcast": {"shape": [3, 2, 1], "correct": bits(bytes(1)), "nan": bits(bytes(1))},
    "another shape": {**GOOD, "shape": [3, 80]},
    "too few": {**GOOD, "nan": bits(bytes(29))},
    "a bomb": {**GOOD, "correct": bits(bytes(10**8))},
    "cut": {**GOOD, "correct": base64.b64encode(zlib.compress(bytes(range(30)))[:-2]).decode()},
    "bits that are none": {**GOOD, "correct": "abc"},
    "letters": {**GOOD, "correct": "é"},
    "not compressed": {**GOOD, "correct": base64.b64encode(bytes(30)).decode()},
    "right and NaN": {**GOOD, "correct": bits(b"\1" * 30), "nan": bits(b"\1" * 30)},
    "a number": {**GOOD, "nan": 3},
    "nothing": {},
    "null": None,
    "a word": "abc",
    "a list": [1, 2],
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_is_no_packed_answer_of_the_shape_is_refused(case: str) -> None:
    assert not BINARY.unpacked(GOOD, (3, 2, 40)).any()
    tracemalloc.start()
    try:
        with pytest.raises((KeyError, TypeError, ValueError)):
            BINARY.unpacked(MISFITS[case], (3, 2, 40))
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def test_a_packed_answer_takes_two_bits_a_row() -> None:
    """Before they are compressed, which random bits cannot be."""
    answer = np.random.default_rng(1).integers(-1, 2, (8, 8, 4096)).astype(np.int8)
    size = sum(len(text) for text in BINARY.packed(answer).values() if isinstance(text, str))
    assert size < answer.size / 4 * 4 / 3 * 1.01  # base64 has six bits a letter


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            torch.zeros(3),
            r"op: data must be inputs \(rows, ...\) and whole-number labels \(rows\), not empty, got \[3, 2\]",
        ),
        (torch.zeros(2, dtype=torch.int64), "op: data must be"),
        (torch.zeros(3, 1, dtype=torch.int64), "op: data must be"),
    ],
)
def test_data_that_cannot_be_measured(labels: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Accuracy().check_data("op", torch.zeros(3, 2), labels)


def test_scores_that_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match=r"op: the model must give scores of shape \[3, classes\], got \[2, 4\]"):
        ACCURACY.check_scores("op", torch.zeros(2, 4), 3)
    with pytest.raises(ValueError, match=r"op: the model must give scores of shape \[3, classes\], got tuple"):
        ACCURACY.check_scores("op", (torch.zeros(3, 4),), 3)
    with pytest.raises(ValueError, match=r"op: labels must lie in 0..3, got 0..4"):
        ACCURACY.check_clean("op", torch.zeros(2, 4), torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="op: the model gives NaN without noise"):
        ACCURACY.check_clean("op", torch.full((1, 4), float("nan")), torch.tensor([0]))
