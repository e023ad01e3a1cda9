"""The accuracy and the laws: right, wrong and NaN rows, numbers with and without bounds, sums; as stores keep them."""

from __future__ import annotations

import base64
import json
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
import torch

from noisykernels.metrics import ACCURACY, BINARY, NAN, Accuracy, Bounded, Law, Real, Sums


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


FLOATS = {"bounded": Bounded(0.0, 1.0, worst=0.0), "real": Real(), "sums": Sums(3)}


@pytest.mark.parametrize("name", FLOATS)
def test_numbers_come_back_to_the_bit(name: str) -> None:
    law: Law = FLOATS[name]
    answer = law.empty(2, 3, 7)
    answer[...] = np.random.default_rng(0).random(answer.shape)
    answer[0, 1, 2], answer[1, 0, 3] = np.nan, -np.inf
    back = law.unpacked(json.loads(json.dumps(law.packed(answer))), (2, 3, 7))
    assert back.dtype == answer.dtype and back.tobytes() == answer.tobytes() and back.flags.writeable
    assert law.missing(back).sum() == 2 and law.missing(back)[0, 1, 2] and law.missing(back)[1, 0, 3]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": [2, 3, 8]},
        {"type": "<i4"},
        {"type": None},
        {"values": base64.b64encode(zlib.compress(bytes(10**8))).decode()},
        {"values": "é"},
        {"values": 3},
        {"values": base64.b64encode(bytes(30)).decode()},
    ],
    ids=str,
)
def test_what_are_no_packed_numbers_is_refused(name: str, wrong: dict[str, Any]) -> None:
    law: Law = FLOATS[name]
    good = law.packed(law.empty(2, 3, 7))
    with pytest.raises((KeyError, TypeError, ValueError)):
        law.unpacked(good | wrong, (2, 3, 7))
    for missing in good:
        with pytest.raises(KeyError):
            law.unpacked({k: v for k, v in good.items() if k != missing}, (2, 3, 7))


def test_what_is_missing_is_counted_and_never_averaged() -> None:
    row = np.array([[1.0, np.inf, 3.0, np.nan], [np.nan] * 4], dtype=np.float32)
    assert Real().pooled(Real().numbers(row)).tolist()[0] == 2.0 and np.isnan(Real().pooled(Real().numbers(row))[1])
    bounded = Bounded(0.0, 4.0, worst=4.0)
    assert bounded.pooled(bounded.numbers(row)).tolist() == [3.0, 4.0] and bounded.largest_variance == 4.0
    sums = np.array([[[1.0, 2.0], [np.nan, 1.0]]])
    assert Sums(2).pooled(Sums(2).numbers(sums)).tolist() == [[1.0, 2.0]]
    assert Sums(2).missing(sums).tolist() == [[False, True]]
