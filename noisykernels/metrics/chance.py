"""What no measure tells from chance: outputs of one class, targets and outputs that a constant is right of."""

from __future__ import annotations

import torch
from torch import Tensor

from noisykernels._util.warning import warn_user

__all__ = ["Chance", "Seen", "check_targets_differ", "check_told_apart", "warn_of_one_class"]


FEW = 10  # targets that may all be the same by chance: a study of fewer tells nothing anyway


class Chance(ValueError):
    """A measure cannot be told from chance on some data."""


def check_told_apart(op: str, name: str, classes: int) -> None:
    """Refuses a measure of classes where there is one alone, which any noise leaves right."""
    if classes < 2:
        raise ValueError(
            f"{op}: {name} of a model with one output is the same at any noise: write metric='binary_accuracy' for a "
            "logit of two classes, metric='mse' for a number"
        )


def check_targets_differ(op: str, name: str, targets: Tensor, what: str = "labels") -> None:
    """Refuses targets [count, ...] that are all the same: a model that knows nothing of the input says them as well.

    Args:
        op: for errors.
        name: of the measure.
        targets: those that count, of all rows.
        what: they are called.
    """
    if said := _all_say(targets):
        raise Chance(
            f"{op}: {name} needs {what} that differ, to be told from chance: all are {said}, which a model that knows "
            "nothing of the input says as well"
        )


def warn_of_one_class(op: str, name: str, labels: Tensor) -> None:
    """Warns of labels [count] that are all the same, where they may be what the model itself says: see
    `check_targets_differ`."""
    if said := _all_say(labels):
        warn_user(
            f"{op}: {name} of labels that are all {said} cannot be told from chance: a model that knows nothing of the "
            "input may say that as well; give rows of other classes, too"
        )


def _all_say(targets: Tensor) -> str:
    """What targets are that are all the same; empty: they differ, or are few."""
    if len(targets) < FEW or not bool((targets == targets[:1]).all()):
        return ""
    return f"{targets[0].item():g}" if targets[0].numel() == 1 else "the same"


class Seen:
    """Outputs without noise of all rows, batch after batch: whether they differ, and by how much.

    Example:
        >>> seen = Seen()
        >>> seen.add(torch.tensor([[1.0, 2.0], [1.0, 4.0]]))
        >>> seen.alike, seen.one_class, seen.variance
        (False, True, 0.5)
    """

    def __init__(self) -> None:
        self.rows = 0
        self.alike = True  # all rows as the first
        self.one_class = True  # all rows, and positions of them, have their highest score at the same place
        self._first: Tensor | None = None  # of a row
        self._total: Tensor | float = 0.0  # of values less those of the first row, of which squares lose nothing
        self._squares: Tensor | float = 0.0

    def add(self, outputs: Tensor) -> None:
        """Takes the next rows [rows, ...]."""
        first = outputs[:1] if self._first is None else self._first
        best = first.argmax(-1).flatten()[0]
        self.alike = self.alike and bool((outputs == first).all())
        self.one_class = self.one_class and bool((outputs.argmax(-1) == best).all())
        values = outputs.double() - first.double()
        self._total, self._squares = self._total + values.sum(0), self._squares + values.square().sum(0)
        self._first, self.rows = first, self.rows + len(outputs)

    @property
    def variance(self) -> float:
        """Of each element over the rows, on average over elements."""
        spread = torch.as_tensor(self._squares) / self.rows - (torch.as_tensor(self._total) / self.rows).square()
        return float(spread.mean().clamp(min=0))

    def check_differ(self, op: str, name: str, *, classes: bool = False) -> None:
        """Refuses outputs, or the classes that they say, that are the same for all rows."""
        if self.rows >= FEW and (self.one_class if classes else self.alike):
            what = "the class with the highest score is" if classes else "the outputs are"
            raise Chance(
                f"{op}: {name} needs outputs that differ, to be told from chance: without noise {what} the same for "
                "all rows, which a model that knows nothing of the input gives as well"
            )
