"""What users call data: batches of every form are taken, all else is refused in our words, by every study."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch
from good_calls import STUDIES, X, Y
from good_results import TRAINING

from noisykernels._util.data import batches, in_memory

# What is wrong, and what the message must name.
WRONG = {
    "a word": ("abc", "got 'abc'"),
    "bytes": (b"ab", "got b'ab'"),
    "a number": (3, "got 3"),
    "nothing": (None, "got None"),
    "a dict": ({"a": X}, "got {'a'"),
    "a class": (list, "got <class 'list'>"),
    "no batch": ([], "got none"),
    "a set of numbers": ({1, 2}, "got 1"),
    "words": (["a", "b"], "got 'a'"),
    "a pair of words": ([("abc", "def")], "got 'abc'"),
    "a pair of nothing": ([None], "got None"),
    "a tensor within a number": ((torch.tensor(1.0), torch.tensor(1)), r"\[\]"),
    "fewer labels": ((X, Y[:2]), "6.*2"),
    "fewer labels here, more there": ([(X, Y[:4]), (X[:4], Y)], "as many inputs as labels"),
    "nothing in it": ((X[:0], Y[:0]), ""),
    "sparse": ((X.to_sparse(), Y), "dense"),
    "without values": ((X.to("meta"), Y), "dense tensors that hold values"),
}
LABELS = {
    "floats": ((X, Y.float()), "float32"),
    "beyond the classes": ((X, Y + 3), "3..5"),
    "negative": ((X, Y - 1), "-1..1"),
}
# What studies that need labels, and scores of classes, refuse too; in memory at once, so of one shape.
STUDIED = LABELS | {
    "one item": ([(X[0], 0)], "got"),
    "three": ((X, Y, Y), r"got torch.float32 of shape \[6, 4\]"),
    "batches of three": ([(X, Y, Y)], "must be a pair"),
    "uneven lists": ([([[1.0, 2.0], [3.0]], [0, 1])], "got"),
    "objects": ([(object(), [0])], "got <object"),
    "shapes that differ": ([(X, Y), (X[:, :3], Y)], r"got torch.float32 of shape \[6, 3\] after"),
    "types that differ": ([(X, Y), (X.double(), Y)], "got torch.float64"),
}
FOREIGN = r"unpack|iterable$|subscript|NoneType|aten::|new\(\)|cannot be concatenated|sequence|dimension|infer|Errno"
OF_ROWS = [f for f in TRAINING if f.__name__ in ("site_statistics", "gradient_norms", "m_sharpness", "recalibrate_bn")]
OF_PAIRS = [f for f in TRAINING if f.__name__ in ("train", "accuracy")]
OF_CLASSES = [f for f in OF_ROWS if f.__name__ in ("gradient_norms", "m_sharpness")] + OF_PAIRS
ALL = [function for function, good in {**STUDIES, **TRAINING}.items() if "data" in good()]


def refused(function, data, message: str) -> None:
    good = {**STUDIES, **TRAINING}[function]() | {"data": data}
    if function.__name__ == "train":
        good["epochs"] = 1
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        function(**good)
    said = str(caught.value)
    assert re.match(rf"{function.__name__}: .*\b(data|labels)\b", said)
    assert not re.search(FOREIGN, said.partition(", got")[0]) and "\n" not in said and len(said) < 300


@pytest.mark.parametrize("function", ALL, ids=lambda f: f.__name__)
def test_what_is_no_data(function) -> None:
    for data, message in WRONG.values():
        refused(function, data, message if function in STUDIES else "")


@pytest.mark.parametrize("function", [f for f in ALL if f in STUDIES], ids=lambda f: f.__name__)
def test_what_no_study_can_use(function) -> None:
    for name, (data, message) in STUDIED.items():
        if not (function.__name__ == "order_sensitivity" and name in LABELS and name != "floats"):
            refused(function, data, message)


@pytest.mark.parametrize("function", OF_CLASSES, ids=lambda f: f.__name__)
def test_labels_that_are_no_classes(function) -> None:
    for data, message in LABELS.values():
        refused(function, data, message)


def failing() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    yield X, Y
    raise KeyError("of the loader")


def test_errors_of_a_loader_are_its_own() -> None:
    with pytest.raises(KeyError, match="of the loader"):
        in_memory("f", failing())


def test_data_of_every_form() -> None:
    forms = [
        (X, Y), [X, Y], [(X[:4], Y[:4]), (X[4:], Y[4:])], iter([(X[:1], Y[:1]), (X[1:], Y[1:])]),
        [(X[:4].numpy(), Y[:4].numpy()), (X[4:].numpy(), Y[4:].numpy())], [(X.tolist(), Y.tolist())],
        [[X, Y]],
    ]  # fmt: skip
    for form in forms:
        inputs, labels = in_memory("f", form)
        assert torch.equal(inputs.one, X) and torch.equal(labels, Y)


def test_batches_of_every_form() -> None:
    assert [len(x) for x, _ in batches("f", X, 4)] == [4, 2]
    assert [len(x) for x, _ in batches("f", [(X, Y, "more"), X, [X, Y]], 4)] == [6, 6, 6]
