"""The whole of a model of which every process holds a part, run once without content: the shapes at its sites."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from noisykernels._util.keeping import keeping_state
from noisykernels.injection.doors import without_forwards
from noisykernels.injection.mode import SiteMode
from noisykernels.injection.products import Product
from noisykernels.injection.running import begin, instead, result_of
from noisykernels.injection.shards import Whole
from noisykernels.injection.state import is_injected, state_of

__all__ = ["find_whole"]

_KEPT = 16  # shapes of arguments of which runs are kept


class _Shapes(SiteMode):
    """Takes note of shapes."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.found = Whole({}, {})

    def at(self, name: str, noise: Any, clean: Tensor, row_dim: int | None = None) -> Tensor:
        """The value, of which nothing but the shape is there."""
        self.found.shapes[name] = tuple(clean.shape)
        return clean

    def prepares(self, name: str, product: Product) -> bool:
        """Addresses, by which arrays are told, are not there."""
        return False

    def _uses_array(
        self, name: str, kind: str, args: Any, kwargs: dict[str, Any], product: Product | None
    ) -> Product | None:
        given = (a for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, Tensor))
        self.found.operands[name] = [tuple(a.shape) for a in given]
        return product


def find_whole(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], held: dict[str, Tensor]) -> Whole:
    """The shapes at the sites of an injected model for these arguments, were it in one process.

    Args:
        held: see `shards.tensors_of`, of the model when none of its modules runs: one that does may have local ones.
    """
    state = state_of(model)
    leaves, structure = pytree.tree_flatten((args, kwargs))
    key = structure, *(tuple(a.shape) if isinstance(a, Tensor) else repr(a) for a in leaves)
    if key not in state.wholes:
        if len(state.wholes) >= _KEPT:
            state.wholes.clear()
        try:
            state.wholes[key] = _run(model, args, kwargs, held)
        except Exception as error:
            state.wholes[key] = Whole({}, {}, str(error).partition("\n")[0])
    return state.wholes[key]


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], held: dict[str, Tensor]) -> Whole:
    from torch._subclasses import FakeTensorMode  # noqa: PLC0415  # of models that are shared out only

    if not is_injected(model):
        raise RuntimeError("a part of it is called by itself")
    if any(hasattr(a, "get_seq_length") for a in (*args, *kwargs.values())):
        raise RuntimeError("it was given a cache, of which this process holds a part")
    found: list[Whole] = []

    def run(*args: Any, **kwargs: Any) -> Any:
        mode, args, kwargs = begin(model, state_of(model), args, kwargs, [], make=_Shapes)
        assert isinstance(mode, _Shapes)
        with mode:
            out = result_of(mode, model, args, kwargs)
        mode.found.shapes.update({entry.name: entry.shape for entry in mode.lookups})
        found.append(mode.found)
        return out

    def empty(t: Tensor) -> Tensor:
        return torch.empty(tuple(t.shape), dtype=t.dtype, device=t.device)

    with keeping_state(model), torch.no_grad(), _unshared(model), instead(model, run):
        with FakeTensorMode(allow_non_fake_inputs=True):
            args, kwargs = pytree.tree_map_only(Tensor, empty, (args, kwargs))
            torch.func.functional_call(model, {name: empty(t) for name, t in held.items()}, args, kwargs)
    return found[0]


@contextlib.contextmanager
def _unshared(model: nn.Module) -> Iterator[None]:
    """Without hooks: those that share the model out, and those of others, for which there is nothing to see; and
    without what transformers puts around forwards to share them out."""
    kept = [(hooks, dict(hooks)) for m in model.modules() for hooks in (m._forward_pre_hooks, m._forward_hooks)]
    try:
        for hooks, _ in kept:
            hooks.clear()
        with without_forwards(model, _shares_out):
            yield
    finally:
        for hooks, before in kept:
            hooks.clear()
            hooks.update(before)


def _shares_out(forward: Any) -> bool:
    return str(getattr(forward, "__module__", "")).startswith("transformers.distributed.")
