"""One forward of an injected model, told operation by operation: what enters at each, which parameters it reads, how
many products it adds up.

Operations are seen twice: as the functions that the model calls, which have the names of sites, and below them as what
torch runs, by which multiply-adds are counted and parameters are followed through views, casts and whatever is computed
from them alone. So nothing here knows kinds of layers: a site is what the mode makes one, and an array is where it asks
for hardware.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import flop_registry

from noisykernels._util.keeping import keeping_state
from noisykernels._util.runtime import evaluating
from noisykernels.hardware.device import Device
from noisykernels.injection.kinds import FLEX, GROUPED, LOOKUPS
from noisykernels.injection.lookups import acts_on_entries
from noisykernels.injection.mode import SiteMode
from noisykernels.injection.parameters import Parameters
from noisykernels.injection.rows import apart
from noisykernels.injection.running import begin, called, result_of
from noisykernels.injection.site import kind_of, whole_of
from noisykernels.injection.state import state_of
from noisykernels.injection.values import Change
from noisykernels.nn.signals import draw_layer, draw_standard, enter_model, enter_module, give_output, leave_module
from noisykernels.noise.description import Noise

__all__ = ["Call", "calls_of"]

_NOTICES = frozenset((enter_module, leave_module, give_output, enter_model, draw_standard))

# What torch runs to move values, or to make them of none.
_MOVES = frozenset(
    "clone copy_ copy _to_copy cat stack index index_select gather slice select narrow constant_pad_nd repeat "
    "repeat_interleave roll flip fill_ zero_ lift_fresh lift_fresh_copy expand_copy detach scatter slice_scatter "
    "select_scatter index_put index_put_ index_copy masked_fill masked_fill_ where tril triu new_zeros new_empty "
    "new_full zeros_like ones_like empty_like full_like rand_like randn_like pixel_shuffle pixel_unshuffle".split()
)
_RECURRENT = ("_cudnn_rnn", "mkldnn_rnn_layer", "miopen_rnn")
_ADDING = ("add", "badd")  # addmm and its like, whose first argument is added


@dataclass
class Work:
    """What torch runs in an operation.

    Args:
        macs: multiply-adds.
        parameters: that it reads.
        multiplied: those of them that are operands of its products.
        computes: whether values come out that were not there before.
    """

    macs: int = 0
    parameters: frozenset[str] = frozenset()
    multiplied: frozenset[str] = frozenset()
    computes: bool = False

    def __add__(self, more: Work) -> Work:
        return Work(
            self.macs + more.macs, self.parameters | more.parameters, self.multiplied | more.multiplied,
            self.computes or more.computes,
        )  # fmt: skip


@dataclass
class Call:
    """One operation of a forward.

    Args:
        name: of its site, or of the function where it makes none.
        function: that was called.
        site: whether it makes a site.
        shape: of its result.
        work: what torch ran in it.
        noise: enters after it.
        devices: that it runs on; None: none were placed there.
        array: the parameters that its array is made of; none where values are multiplied with values.
        asked: whether the mode asked for hardware there, so that it could run on some.
        why: why noise does not enter, though it was placed there or since nothing can; empty: it does, or was not.
        idle: devices were placed there of which none acts.
    """

    name: str
    function: str
    site: bool = False
    shape: tuple[int, ...] = ()
    work: Work = field(default_factory=Work)
    noise: bool = False
    devices: Sequence[Device] | None = None
    array: frozenset[str] = frozenset()
    asked: bool = False
    why: str = ""
    idle: bool = False


class _Counting(Parameters):
    """Tells the account of the work within the call that it has open."""

    def __init__(self, account: _Account) -> None:
        super().__init__(account.modules[0][1])
        self.account = account

    def ran(
        self, func: Any, args: Any, kwargs: Any, out: Any, given: list[Tensor], results: list[Tensor]
    ) -> None:  # fmt: skip
        """See `Parameters`."""
        if isinstance(func, HigherOrderOperator):  # such as flex_attention, in which no dispatch sees anything
            self.account.work += Work(_of_attention(*args[:3]) if func is FLEX else 0, self.of(given), computes=True)
            return
        name = func._schema.name.rpartition("::")[2]
        if not given or name in _MOVES or not any(t.is_floating_point() or t.is_complex() for t in results):
            return
        aliases = [r.alias_info for r in func._schema.returns if r.alias_info is not None]
        if aliases and not any(a.is_write for a in aliases):  # a view
            return
        macs, read = _macs(func, name, args, kwargs, out), self.of(given)
        multiplied = read if "embedding" in name else frozenset[str]()  # looked up in an array
        if macs:
            factors = [v for a, v in zip(func._schema.arguments, args, strict=False) if _is_factor(a.name, name)]
            leaves = [t for t in pytree.tree_leaves(factors) if isinstance(t, Tensor)]
            multiplied = self.of([t for t in leaves if t.dim() > 1 or name not in _RECURRENT])
        self.account.work += Work(macs, read, multiplied, True)


def _is_factor(argument: str, operation: str) -> bool:
    """Whether an argument of a contraction is multiplied, not added."""
    return argument != "bias" and not (argument in ("self", "input") and operation.startswith(_ADDING))


def _macs(func: Any, name: str, args: Any, kwargs: Any, out: Any) -> int:
    """Multiply-adds of one operation of torch's; products with padding count."""
    formula = flop_registry.get(func.overloadpacket)
    if formula is not None:
        return int(formula(*args, **kwargs, out_val=out)) // 2
    if name in ("mv", "dot", "vdot"):
        return int(args[0].numel())
    if name == "addmv":
        return int(args[1].numel())
    if name == "_trilinear":  # of F.bilinear: for each row every weight once
        return int(out.numel() * args[1].numel() // max(1, out.shape[-1]))
    if name == f"_{GROUPED}":  # its result has the groups, too, where both operands are matrices
        inner, flat = args[0].shape[-1], args[0].dim() == args[1].dim() == 2
        return int(inner * (args[0].shape[0] * args[1].shape[1] if flat else out.numel()))
    if name == "_scaled_dot_product_flash_attention_for_cpu":
        return _of_attention(*args[:3])
    if name in _RECURRENT:
        weights = [t for t in pytree.tree_leaves(args[1:3]) if isinstance(t, Tensor) and t.dim() == 2]
        return int(math.prod(args[0].shape[:-1]) * sum(t.numel() for t in weights))
    return 0


def _of_attention(query: Tensor, key: Tensor, value: Tensor) -> int:
    """Multiply-adds of an attention's two products."""
    return int(query.numel() * key.shape[-2] + query.numel() // query.shape[-1] * key.shape[-2] * value.shape[-1])


class _Account(SiteMode):
    """Lists the operations of a forward, in which nothing enters."""

    found: dict[str, Call]
    named: list[str]  # sites of the function that runs
    work: Work  # since the last of them
    others: dict[str, int]  # calls of functions that make no site

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _NOTICES:
            return super().__torch_function__(func, types, args, kwargs)
        function = args[1] if func is draw_layer else str(getattr(func, "__name__", func)).partition(".")[0].strip("_")
        self.named, self.work = [], Work()
        out = super().__torch_function__(func, types, args, kwargs)
        if self.work.computes:
            self._close(function, out)
        return out

    def _close(self, function: str, out: Any) -> None:
        """Puts the work that is left down to the function's last site, or to itself."""
        shape = next((tuple(t.shape) for t in pytree.tree_leaves(out) if isinstance(t, Tensor)), ())
        if not self.named:
            stem = f"{self.modules[-1][0]}:{function}"
            number = self.others[stem] = self.others.get(stem, -1) + 1
            why = "it is in a part in which no operation is a site" if self.muted else f"{function} makes no site"
            self.named = [f"{stem}#{number}"]
            self.found[self.named[0]] = Call(self.named[0], function, why=why)
        call = self.found[self.named[-1]]
        call.work, call.shape = call.work + self.work, call.shape or shape

    def name(self, kind: str) -> str:
        """See `SiteMode`."""
        name = super().name(kind)
        why = f"{kind} makes no site" if kind in LOOKUPS else ""
        self.found[name] = Call(name, kind, site=not why, why=why)
        self.named.append(name)
        return name

    def at(self, name: str, noise: Noise | Change | None, clean: Tensor, row_dim: int | None = None) -> Tensor:
        """See `SiteMode`: noise is only told of."""
        call = self.found.setdefault(name, Call(name, kind_of(name), site=True))
        call.work, self.work, call.shape = call.work + self.work, Work(), tuple(clean.shape)
        if noise is not None:
            rows = self.rows_at(name, row_dim)
            if not clean.is_floating_point():
                call.why = "its values are integers or complex"
            elif rows is None or apart(clean, rows, self.key.batch) is None:
                call.why = "rows cannot be told apart there"
            else:
                call.noise = True
        return clean

    def operation(self, name: str) -> Call:
        """The operation of this name, or the attention that a product of this name is a part of."""
        return self.found[name if name in self.found else whole_of(name) or name]

    def hardware_at(self, name: str) -> Sequence[Device] | None:
        """See `SiteMode`: hardware is only told of."""
        call, devices = self.operation(name), super().hardware_at(name) or ()
        if kind_of(name) in LOOKUPS:
            devices, given = [d for d in devices if acts_on_entries(d, "bag" in name)], devices
            if given and not devices:
                call.why, call.idle = "a look-up has no inputs to convert and no sums of products", True
        call.asked, call.devices = True, devices or call.devices
        return None

    def drawn(self, op: Any, kind: str, noise: Noise | None, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """See `SiteMode`."""
        own = kwargs.pop("hardware", None)
        out = super().drawn(op, kind, noise, x, *args, **kwargs)
        if self.placement.layers_own:
            call = self.found[self.named[-1]]
            call.asked, call.devices = True, own
        return out


def calls_of(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Call]:
    """The operations of one forward of an injected model in evaluation mode, in which nothing enters.

    Noise and hardware count also where switches leave them out in this mode.
    """
    state = state_of(model)

    found: dict[str, Call] = {}

    def make(*given: Any) -> SiteMode:
        mode = _Account(*given)
        mode.found, mode.named, mode.others, mode.work, mode.always = found, [], {}, Work(), True
        return mode

    def run(*args: Any, **kwargs: Any) -> Any:
        mode, args, kwargs = begin(model, state, args, kwargs, [], make)
        assert isinstance(mode, _Account)
        with mode, _Counting(mode) as mode.chip.parameters:
            out = result_of(mode, model, args, kwargs)
        for name, array in mode.chip.read.items():
            mode.operation(name).array |= array
        return out

    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))  # a model may write into them
    with (
        keeping_state(model, forwards=True),
        evaluating(model),
        torch.inference_mode(False),
        torch.no_grad(),
    ):  # in which torch takes no operations apart
        called(model, run, args, kwargs)
    return list(found.values())
