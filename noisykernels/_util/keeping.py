"""A model is left as it was, to the bit: buffers, counters, caches, whatever its modules hold beside parameters. So are
the random numbers that others draw.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from noisykernels._util.randomness import generator_of, keeping_random
from noisykernels._util.warning import warn_user

__all__ = ["keeping_state"]

# Of a module, what no forward writes, or what others put back: methods of injected models, hooks, modes.
_NOT_KEPT = ("_parameters", "_modules", "forward", "__prepare_scriptable__", "training", "_compiled_call_impl")
_LIBRARIES = ("torch", "builtins", "noisykernels", "functools", "types")  # objects of theirs are not looked into


@contextlib.contextmanager
def keeping_state(model: nn.Module, forwards: bool = False) -> Iterator[None]:
    """What a model's forwards write into its modules meanwhile is as it was afterwards, and so are random numbers.

    Parameters are not copied. Where nothing but forwards runs (`forwards`), those that are written into are told of in
    a warning, and all stays as the forwards leave it, for whoever keeps the state of the same modules further out, too:
    a flag that says what has been done to the parameters must go with them, or the next forward does it once more.
    """
    kept = _Kept()
    for module in model.modules():
        if not isinstance(module, LazyModuleMixin):  # whose first forward makes it another module
            kept.note_named(module.__dict__)
    before = {name: (p, p._version) for name, p in model.named_parameters() if not p.is_inference()} if forwards else {}
    _open.append(kept)
    try:
        with keeping_random():
            yield
    finally:
        _open.remove(kept)
        if written := [name for name, (p, version) in before.items() if p._version != version]:
            warn_user(
                f"the model's forward writes into its parameters {', '.join(written)}: these, and what else it keeps, "
                "stay as it has left them"
            )
            for other in (kept, *_open):
                other.is_left |= not kept.named.keys().isdisjoint(other.named)
        if not kept.is_left:
            kept.put_back()


_open: list[_Kept] = []  # entered and not left


def _is_kept(name: Any) -> bool:
    return not isinstance(name, str) or not (name in _NOT_KEPT or name.startswith("_noise") or "hook" in name)


class _Kept:
    """Containers with what they held, tensors and arrays with their values, generators with their states; each once."""

    def __init__(self) -> None:
        self.named: dict[int, tuple[dict[Any, Any], dict[Any, Any]]] = {}
        self.listed: dict[int, tuple[Any, list[Any]]] = {}
        self.tensors: dict[int, tuple[Tensor, Tensor]] = {}
        self.arrays: dict[int, tuple[Any, Any]] = {}
        self.generators: list[tuple[Callable[[Any], None], Any]] = []
        self.is_left = False  # as it is

    def note_named(self, told: dict[Any, Any]) -> None:
        """Takes note of attributes or of a dict."""
        if id(told) not in self.named:
            self.named[id(told)] = told, {name: value for name, value in told.items() if _is_kept(name)}
            for value in self.named[id(told)][1].values():
                self.note(value)

    def note(self, value: Any) -> None:
        """Takes note of a value and of all that it holds."""
        if isinstance(value, nn.Parameter | nn.Module | type):
            return
        if isinstance(value, Tensor):
            if value.layout is torch.strided and not value.is_meta:
                self.tensors.setdefault(id(value), (value, value.detach().clone()))
        elif isinstance(value, np.ndarray):
            self.arrays.setdefault(id(value), (value, value.copy()))
        elif (generator := generator_of(value)) is not None:
            self.generators.append(generator)
        elif isinstance(value, dict):
            self.note_named(value)
        elif isinstance(value, list | set | deque | tuple):
            if id(value) not in self.listed:
                self.listed[id(value)] = value, list(value)
                for inner in value:
                    self.note(inner)
        elif type(value).__module__.partition(".")[0] not in _LIBRARIES:  # such as a cache of keys and values
            told = getattr(value, "__dict__", None)
            if isinstance(told, dict):
                self.note_named(told)

    def put_back(self) -> None:
        """Everything as it was; what has not changed is not written."""
        for told, before in self.named.values():
            for name in [n for n in told if _is_kept(n) and n not in before]:
                del told[name]
            for name, value in before.items():
                if name not in told or told[name] is not value:
                    told[name] = value
        for held, items in self.listed.values():
            if isinstance(held, tuple) or (
                len(held) == len(items) and all(a is b for a, b in zip(held, items, strict=True))
            ):
                continue
            held.clear()
            (held.update if isinstance(held, set) else held.extend)(items)
        for set_state, state in self.generators:
            set_state(state)
        self._put_back_values()

    def _put_back_values(self) -> None:
        for array, before in self.arrays.values():
            if array.tobytes() != before.tobytes():
                array[...] = before
        for tensor, value in self.tensors.values():
            with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                if tensor.shape != value.shape or tensor.dtype != value.dtype:
                    tensor.data = value
                elif not torch.equal(tensor, value):
                    tensor.data.copy_(value)
