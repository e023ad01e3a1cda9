"""What a model is given for some rows, how it is called on that, and which tensor of what it gives is its output."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from noisykernels._util.checks import is_number, shown
from noisykernels._util.runtime import unwrap

__all__ = ["ANY", "Call", "Called", "Inputs", "Output", "Takes"]

Output = str | int | Callable[[Any], Tensor] | None


@dataclass(frozen=True, eq=False)
class Inputs:
    """Some rows of a model's arguments: tensors by position, or all of them by name.

    Args:
        tensors: each with its rows along the same dimension, as many as the others.
        names: of the arguments; empty: they are given by position.
        dim: that counts rows.
        grouped: whether they came as a tuple, be it of one.
        weights: of the rows, or of their positions, which the model is not given; None: there are none.

    Example:
        >>> pair = Inputs((torch.zeros(5, 2), torch.ones(5)))
        >>> len(pair), [tuple(t.shape) for t in pair[1:3].tensors], [len(part) for part in pair.split(3)]
        (5, [(2, 2), (2,)], [3, 2])
    """

    tensors: tuple[Tensor, ...]
    names: tuple[str, ...] = ()
    dim: int = 0
    grouped: bool = False
    weights: Tensor | None = None

    def __len__(self) -> int:
        return int(self.tensors[0].shape[self.dim])

    def __getitem__(self, rows: slice | Tensor) -> Inputs:
        if self.dim == 0:
            return self.each(lambda t: t[rows])
        at = (slice(None),) * self.dim
        weights = None if self.weights is None else self.weights[rows]
        return replace(self, tensors=tuple(t[(*at, rows)] for t in self.tensors), weights=weights)

    def each(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """With every tensor changed."""
        weights = None if self.weights is None else change(self.weights)
        return replace(self, tensors=tuple(map(change, self.tensors)), weights=weights)

    @property
    def every(self) -> tuple[Tensor, ...]:
        """What there is of the rows: what the model is given, and their weights."""
        return self.tensors if self.weights is None else (*self.tensors, self.weights)

    def split(self, rows: int) -> Iterator[Inputs]:
        """So many rows at once."""
        for first in range(0, len(self), rows):
            yield self[first : first + rows]

    def clone(self) -> Inputs:
        """A copy, into which a model may write."""
        return self.each(torch.clone)

    def to(self, device: torch.device) -> Inputs:
        """The same on a device."""
        return self.each(lambda t: t.to(device))

    def permuted(self, order: Tensor) -> Inputs:
        """The rows in another order."""
        return self[order.to(self.device)]

    def by_position(self) -> Inputs:
        """The same, given by position."""
        return replace(self, names=(), grouped=True)

    def ordered(self, names: tuple[str, ...]) -> Inputs:
        """The same in an order of the names, if they are these."""
        if self.names == names or set(self.names) != set(names):
            return self
        table = dict(zip(self.names, self.tensors, strict=True))
        return replace(self, names=names, tensors=tuple(table[n] for n in names))

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.tensors[0].device

    @property
    def one(self) -> Tensor | None:
        """The tensor, where it is a single one, given by position."""
        return self.tensors[0] if len(self.tensors) == 1 and not self.names else None

    @property
    def given(self) -> Any:
        """As they came: a tensor, a tuple or a dict; also an example input."""
        if self.names:
            return dict(zip(self.names, self.tensors, strict=True))
        return self.tensors if self.grouped or len(self.tensors) > 1 else self.tensors[0]

    @property
    def arguments(self) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Positional and keyword arguments of the model."""
        return ((), dict(zip(self.names, self.tensors, strict=True))) if self.names else (self.tensors, {})

    def told(self) -> list[str]:
        """What each is called in messages."""
        return [repr(n) for n in self.names] or [f"input {i + 1}" for i in range(len(self.tensors))]

    @classmethod
    def of(cls, given: Any) -> Inputs:
        """Of a tensor, a tuple of them, or a dict."""
        if isinstance(given, cls):
            return given
        if isinstance(given, Mapping):
            return cls(tuple(given.values()), tuple(given))
        return cls(given, grouped=True) if isinstance(given, tuple) else cls((given,))

    @staticmethod
    def joined(parts: Sequence[Inputs]) -> Inputs:
        """The rows of all parts, one after the other."""
        if len(parts) == 1:
            return parts[0]
        columns = [torch.cat(list(column)) for column in zip(*(part.every for part in parts), strict=True)]
        weights = None if parts[0].weights is None else columns.pop()
        return replace(parts[0], tensors=tuple(columns), weights=weights)


class Takes(NamedTuple):
    """What is looked for in data.

    Args:
        names: of the model's arguments; None: any, or they are not known.
        weights: the key of the rows' weights, which in tuples are a third member; None: no weights are wanted.
        both: whether the model is given them as well, by that name.
        decoder: of a model with encoder and decoder, what makes the decoder's inputs of labels, as transformers names
            it: without them some make theirs of the encoder's inputs, and others fail.
    """

    names: tuple[str, ...] | None = None
    weights: str | None = None
    both: bool = False
    decoder: Callable[..., Tensor] | None = None


ANY = Takes()


@dataclass(frozen=True)
class Call:
    """How a model is called on inputs, and which tensor is its output.

    Args:
        op: name of the function that asks, for errors.
        forward: function (model, inputs as they came) -> output, such as ``lambda model, batch: model(**batch)``;
            None: ``model(x)``, ``model(x, z)`` or ``model(**inputs)``.
        output: key, attribute or index of the tensor in what the model gives, or a function of that; None: the
            tensor itself, else its ``logits``, else the first tensor in it.

    Raises:
        TypeError: a forward or an output of another kind.

    Example:
        >>> call = Call("f", output="logits")
        >>> call(lambda x: {"loss": 0, "logits": 2 * x}, Inputs((torch.ones(2),)))
        tensor([2., 2.])
    """

    op: str
    forward: Callable[..., Any] | None = None
    output: Output = None

    def __post_init__(self) -> None:
        if self.forward is not None and (not callable(self.forward) or isinstance(self.forward, type)):
            got = shown(self.forward)
            raise TypeError(f"{self.op}: forward must be a function (model, batch) -> output, got {got}")
        known = self.output is None or isinstance(self.output, str) or is_number(self.output) or callable(self.output)
        if not known or isinstance(self.output, type):
            raise TypeError(f"{self.op}: output must be a key, an index or a function, got {shown(self.output)}")

    def __call__(self, model: Callable[..., Any], inputs: Inputs) -> Any:
        with self.explaining(model, inputs):
            if self.forward is not None:
                return self.picked(self.forward(model, inputs.given))
            args, kwargs = inputs.arguments
            return self.picked(model(*args, **kwargs))

    @contextlib.contextmanager
    def explaining(self, model: Any, inputs: Inputs, shapes: bool = False) -> Iterator[None]:
        """Tells of inputs of another type than the model's parameters where that may be why a block fails.

        Args:
            shapes: of these inputs, too: the block is the first that runs the model.

        Raises:
            ValueError: an error of torch's about types, and such inputs; about shapes.
        """
        try:
            yield
        except RuntimeError as error:
            if shapes and re.search(r"\b(shapes?|sizes?|channels|dimensions?)\b", (said := str(error))):
                if re.match(r"\w+: ", said):  # our own, which says more
                    raise
                raise ValueError(
                    f"{self.op}: data must have inputs of a shape that the model takes, got "
                    f"{', '.join(map(shown, inputs.tensors))}: {said.partition(chr(10))[0]}"
                ) from error
            own = {p.dtype for p in model.parameters()} if isinstance(model, nn.Module) else set()
            given = [t.dtype for t in inputs.tensors if t.is_floating_point() or t.is_complex()]
            given = [kind for kind in given if kind not in own] if given else [t.dtype for t in inputs.tensors]
            if not own or not given or "type" not in str(error):
                raise
            raise ValueError(
                f"{self.op}: data must have inputs of the type of the model's parameters, "
                f"{', '.join(sorted(map(str, own)))}, or of one that it takes, got {given[0]}: "
                f"{str(error).partition(chr(10))[0]}"
            ) from error

    def told(self) -> dict[str, str]:
        """By what stores tell it from others; that of every tensor has nothing to tell."""
        found = {"forward": self.forward, "output": self.output}
        return {name: _name(value) for name, value in found.items() if value is not None}

    def picked(self, given: Any) -> Any:
        """The output among what a model gives; what is no tensor, and holds none, comes back as it is."""
        if self.output is None:
            return given if isinstance(given, Tensor) else _first(given)
        if callable(self.output):
            return self.output(given)
        found = None
        if is_number(self.output):
            values = list(given.values()) if isinstance(given, Mapping) else given
            if isinstance(values, tuple | list) and -len(values) <= int(self.output) < len(values):
                found = values[int(self.output)]
        elif isinstance(given, Mapping):
            found = given.get(self.output)
        else:
            found = getattr(given, str(self.output), None)
        if not isinstance(found, Tensor):
            raise ValueError(f"{self.op}: output={self.output!r} must say which tensor it is, got {_told(given)}")
        return found

    def takes(self, model: nn.Module, weights: str | None = None) -> Takes:
        """What of data the model takes, and what the weights are called, where some are wanted: it takes those as well
        if it has an argument of that name, or if they are a mask and it takes any name."""
        kinds = [] if (found := _signature(model)) is None else [*found.parameters.values()]
        names = tuple(p.name for p in kinds)
        known = self.forward is None and kinds and all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in kinds)
        both = weights is not None and (weights in names or (not known and "mask" in weights))
        decoder = None if self.forward is not None else getattr(
            unwrap(model), "prepare_decoder_input_ids_from_labels", None)  # fmt: skip
        return Takes(names if known else None, weights, both, decoder)

    def check(self, model: nn.Module, inputs: Inputs) -> None:
        """Refuses inputs that the model's forward does not take.

        Raises:
            ValueError: names that it does not know, or more inputs than it takes.
        """
        if self.forward is not None or (takes := _signature(model)) is None:
            return
        args, kwargs = inputs.arguments
        try:
            takes.bind(*args, **kwargs)
        except TypeError as error:
            has = f"{{{', '.join(map(repr, inputs.names))}}}" if inputs.names else f"{len(inputs.tensors)} by position"
            raise ValueError(
                f"{self.op}: data must hold the inputs of the model's forward, {', '.join(takes.parameters)}, got "
                f"{has}; forward= says how to call it otherwise"
            ) from error


def _signature(model: nn.Module) -> inspect.Signature | None:
    """What a model's forward takes; of compiled code it is not known."""
    try:
        return inspect.signature(unwrap(model).forward)
    except (TypeError, ValueError):
        return None


class Called(nn.Module):
    """A model that is called in its user's way: its arguments are the tensors of `inputs`, by position.

    Args:
        model: that is called; its names begin at the part `Called.ROOT`.
        how: its forward.
        inputs: some, in the form that they come in.
    """

    ROOT = "model"

    def __init__(self, model: nn.Module, how: Callable[..., Any], inputs: Inputs) -> None:
        super().__init__()
        self.model = model
        self._how, self._names, self._grouped = how, inputs.names, inputs.grouped

    def extra_repr(self) -> str:
        """What stores tell it by."""
        return f"forward={_name(self._how)}"

    def forward(self, *tensors: Tensor) -> Any:
        """What the user's function gives."""
        return self._how(self.model, Inputs(tensors, self._names, grouped=self._grouped).given)


def _name(value: Any) -> str:
    return str(getattr(value, "__qualname__", repr(value)))


def _first(given: Any) -> Any:
    """The logits, or the first tensor."""
    logits = given.get("logits") if isinstance(given, Mapping) else getattr(given, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(given, Mapping):
        given = tuple(given.values())
    return next((t for t in pytree.tree_leaves(given) if isinstance(t, Tensor)), given)


def _told(given: Any) -> str:
    """What a model gives, in a few words."""
    if isinstance(given, Mapping):
        return f"a {type(given).__name__} of {', '.join(map(repr, given))}"
    if isinstance(given, tuple | list):
        return f"a {type(given).__name__} of {len(given)}"
    return shown(given)
