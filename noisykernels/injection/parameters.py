"""Which parameters of a model the values of a forward are made of: followed below torch's functions, through views,
casts and whatever is computed from parameters alone, as a normalised or an assembled weight is."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Parameters"]


class Parameters(TorchDispatchMode):
    """Follows the parameters of a model while it runs.

    Example:
        >>> import torch
        >>> layer, x = nn.Linear(2, 2), torch.ones(2, 2)
        >>> with Parameters(layer) as parameters:
        ...     turned, used = layer.weight.t() / 2, layer.weight + x
        >>> parameters.of(turned), parameters.of(used)
        (frozenset({'weight'}), frozenset())
    """

    only_looks = True  # see `can_look`
    supports_higher_order_operators = True  # which pass as they are

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._model = model
        # What is made of parameters and of constants alone: the tensor, which must live on, and the parameters' names.
        self._made: dict[int, tuple[Tensor, frozenset[str]]] = {id(b): (b, frozenset()) for b in model.buffers()}
        self._look()

    def _look(self) -> None:
        self._made |= {id(p): (p, frozenset([name])) for name, p in self._model.named_parameters()}

    def _look_again(self, tensors: list[Tensor]) -> None:
        """Takes note of parameters that have taken the place of others meanwhile, as of a sharded model."""
        if any(isinstance(t, nn.Parameter) and id(t) not in self._made for t in tensors):
            self._look()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch's compiler is loaded, which takes seconds: nothing is compiled here

    def of(self, value: Any) -> frozenset[str]:
        """The parameters that the tensors of a value are made of, where they are made of nothing else."""
        tensors = [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]
        self._look_again(tensors)
        return frozenset().union(*(self._made[id(t)][1] for t in tensors if id(t) in self._made))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        results = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
        name = func.name() if isinstance(func, HigherOrderOperator) else func._schema.name.rpartition("::")[2]
        self._look_again(given)
        read = [] if name.startswith("new_") or name.endswith("_like") else given  # which look at no value
        if all(id(t) in self._made for t in read):
            names = self.of(read)
            for t in results:
                self._made.setdefault(id(t), (t, names))
        else:  # what was written into is made of parameters alone no longer
            for t in results:
                self._made.pop(id(t), None)
        self.ran(func, args, kwargs, out, given, results)
        return out

    def ran(
        self, func: Any, args: Any, kwargs: Any, out: Any, given: list[Tensor], results: list[Tensor]
    ) -> None:  # fmt: skip
        """An operation of torch's has run on the tensors given, and made the results."""
