"""What happens below torch's functions while a model is recorded: which memory is written into, whether values become
numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from noisykernels._graph.in_place import memory_of

__all__ = ["Inside"]

_aten = torch.ops.aten
_TO_NUMBERS = frozenset([_aten._local_scalar_dense.default, _aten.equal.default, _aten.item.default])


class Inside(TorchDispatchMode):
    """Sees the kernels that a function calls."""

    supports_higher_order_operators = True  # which pass as they are

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.written: set[int] = set()  # memory
        self.numbers = False  # values became numbers
        self.places: dict[Any, list[tuple[int, str]]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch's compiler is loaded, which takes a second: nothing is compiled here

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):  # what it runs is seen, too
            return func(*args, **kwargs)
        if func in _TO_NUMBERS:
            self.numbers = True
        if func not in self.places:
            arguments = enumerate(func._schema.arguments)
            self.places[func] = [(i, a.name) for i, a in arguments if a.alias_info and a.alias_info.is_write]
        for i, name in self.places[func]:
            given = args[i] if i < len(args) else kwargs.get(name)
            with torch._C.DisableTorchFunction():
                self.written |= {memory_of(t) for t in pytree.tree_leaves(given) if isinstance(t, Tensor) and t.numel()}
        return func(*args, **kwargs)
