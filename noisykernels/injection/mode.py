"""Noise in a running forward: a torch-function mode sees every operation that a model calls, from
modules and from plain functions alike, and puts noise on those that are sites.

Nothing in the model is replaced, so parameters, keys, hooks and sharing stay as they are. What is
chosen (`Placement`) and under which key (`ForwardKey`) is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisykernels.injection.arrays import Arrays
from noisykernels.injection.attention import multi_head_attention_forward
from noisykernels.injection.belonging import Belonging
from noisykernels.injection.doors import door_of
from noisykernels.injection.drawing import ForwardKey, Lead
from noisykernels.injection.kinds import (
    CELLS,
    CONTRACTION_KINDS,
    CONTRACTIONS,
    FLEX,
    KINDS,
    LOOKUPS,
    PREPARING,
    RECURRENT,
    SEVERAL,
    SOFTMAX,
    in_place,
)
from noisykernels.injection.memory import Array, Memory
from noisykernels.injection.noisy_layers import NoisyLayers
from noisykernels.injection.placement import Placement
from noisykernels.injection.products import Product, pairs_of, product_of
from noisykernels.injection.record import Entry, Record
from noisykernels.injection.recurrent import with_noise
from noisykernels.injection.results import first_of
from noisykernels.injection.routed import Numbers, stem_of
from noisykernels.injection.rows import ALONE, Rows
from noisykernels.injection.shards import Parallel
from noisykernels.injection.site import CACHE
from noisykernels.injection.spot import Spot
from noisykernels.injection.tokens import ROUTED, Place, Tokens
from noisykernels.injection.values import Change
from noisykernels.injection.written_out import Role
from noisykernels.nn.signals import (
    cached,
    draw_layer,
    draw_standard,
    enter_model,
    enter_module,
    give_output,
    leave_module,
    refuse_another,
    within_model,
)
from noisykernels.noise.description import Noise

WHOLE = "a part of an injected model cannot be compiled, only the whole model"
BROKEN = (
    "the graph of a compiled injected model breaks within its forward, of which the rest would have other noise: "
    "fullgraph=True says where, or run the model uncompiled"
)

_WITH_ARRAYS = frozenset((*CONTRACTIONS, *RECURRENT, *CELLS, "attention"))

# Functions that the mode answers itself; every other one that makes no site goes its way at once.
_NOTICES = (
    enter_module,
    leave_module,
    give_output,
    enter_model,
    within_model,
    draw_layer,
    draw_standard,
    cached,
    F.multi_head_attention_forward,
)
_ROLES: dict[Any, str] = KINDS | {FLEX: "attention"} | dict.fromkeys(_NOTICES, "")


class SiteMode(NoisyLayers):
    """Runs one forward of a model: names each site as it comes and puts the noise there.

    Args:
        placement: which noise enters where.
        key: seed, draws and rows of this forward.
        root: the model.
        ids: numbers of the sites known so far; filled up as names come.
        places: where the value at each traced site holds its rows; None where they are mixed.
        record: if given, sites are listed there, and no noise enters.
    """

    def __init__(
        self,
        placement: Placement,
        key: ForwardKey,
        root: nn.Module,
        ids: dict[str, int],
        places: Mapping[str, Rows | None],
        record: Record | None = None,
    ) -> None:
        super().__init__()
        self.placement, self.key, self.ids, self.places = placement, key, ids, places
        self.owner: Any = None  # the state of the model
        self.batch, self.column = key.batch, placement.column
        self.operands: Mapping[str, Array | None] = {}  # of traced products, which is an array
        self.tokens: Tokens | None = None  # where rows are tokens
        self.token_places: Mapping[str, Place | str] = {}  # where values hold them
        self.lead: Lead | None = None  # of those in which they come first
        self.belonging: Belonging | None = None  # where tokens are followed
        self.token_numbers: Numbers | None = None  # of tokens, by which they are
        self.routed: frozenset[str] = frozenset()  # stems of the sites at which they are
        self.seen: dict[str, Tensor] = {}  # by stem: how many of its calls have come to each token
        self.flat = False  # values have tokens for rows now
        self.parallel: Parallel | None = None  # where processes hold parts of the model
        self.lent: Any = None  # a cache that this forward was given and its caller knows nothing of
        self.alone: set[str] = set()  # untraced products of weights: without rows
        self.left: set[str] = set()  # sites that are left out
        self.untold: list[str] = []  # those of them of which no warning has told yet
        self.memory: Memory | None = None
        self.record = record
        self.noted: dict[str, Any] = {}  # of a product that is being traced
        self.lookups: Record = []
        self.wanted: Collection[str] = ()  # sites whose values the record holds
        self.tracing = record is not None  # sites are only listed: hardware is left out, as noise is
        self.compiled = torch.compiler.is_compiling()
        self.modules: list[tuple[str, nn.Module]] = [("", root)]
        self.last: Any = None  # what the last site gave
        self.muted = 0  # of the modules that run, how many say that no operation in them is a site
        self.calls: dict[str, int] = {}
        self.roles: Mapping[str, Role] = {}  # parts of attentions that the model writes out
        self.called: dict[str, int] = {}
        self.numbers: dict[str, int] = {}
        self.inputs: dict[str, str | int] = {}  # sites that are arguments of the model, by name or position
        self.arrays: list[str] = []  # sites at which hardware can be
        self.valueless: list[str] = []  # those with noise whose values take none
        self.closed: dict[str, str] = {}  # paths of modules in whose results no tensor is found, and what these are
        self.spots: dict[str, Spot] = {}
        self.chip = Arrays("module")  # which calls share what belongs to it
        self.always = placement.in_training and placement.in_eval
        self.common = (key.seed, key.draws, key.rows, 0)  # of operators' keys, what all sites share
        # Where values lie whose noise is known beforehand; None: it depends on the call.
        simple = key.level is None and not placement.normalize_to_input_size and not self.compiled
        self.place = key.seed.device if simple and key.seed is not None else None
        self.on_hardware = "hardware" in placement.pairs or placement.hardware is not None
        self.knows_leaves = type(self) is SiteMode and record is None and not self.compiled and not placement.outputs
        # The key as kernels take it that are called without torch's dispatcher; None: none is.
        self.plain = (key.batch, key.seed, key.draws, key.rows) if self.knows_leaves and self._is_plain() else None

    def _is_plain(self) -> bool:
        """Whether nothing about the noise of this forward is in need of torch's dispatcher."""
        on_cpu = self.place is not None and self.place.type == "cpu"
        return on_cpu and self.always and not self.on_hardware and torch._C._get_tracing_state() is None

    def begin_tokens(self) -> None:
        """Makes what values have in common whose first dimensions are sequences and tokens."""
        assert self.tokens is not None and self.tokens.streams[0] is not None
        ids = self.tokens.streams[0].ids
        flat, sizes = ids.reshape(-1), (self.key.batch, ids.shape[1])
        plain = None if self.plain is None else (sizes[0] * sizes[1], self.key.seed, self.key.draws, flat)
        self.lead, self.plain = (sizes, flat, plain), None

    def share(self, parallel: Parallel | None) -> None:
        """Values may be parts: nothing about their noise is known before they are seen."""
        if parallel is not None:
            self.parallel, self.place, self.plain, self.knows_leaves = parallel, None, None, False

    def follow(self) -> Belonging:
        """Has the tokens of this forward followed, to sites of which shapes do not tell them; what follows them."""
        self.routed = frozenset(stem_of(name) for name, place in self.token_places.items() if place == ROUTED)
        self.token_numbers = None if self.tokens is None else Numbers.of(self.tokens, self.key.batch)
        self.belonging, self.knows_leaves = Belonging(lambda: self.modules[-1][0]), False
        return self.belonging

    def resumed(self) -> SiteMode:
        """A mode that goes on from here, for a later recomputation of what follows."""
        root = self.modules[0][1]
        return self.as_far_as_this(SiteMode(self.placement, self.key, root, self.ids, self.places))

    def as_far_as_this(self, mode: SiteMode) -> SiteMode:
        """Another mode, brought to where this one stands."""
        mode.owner = self.owner
        mode.modules, mode.calls, mode.muted = list(self.modules), dict(self.calls), self.muted
        mode.roles, mode.called, mode.numbers = self.roles, dict(self.called), dict(self.numbers)
        mode.chip = self.chip.copy()
        mode.operands, mode.left, mode.untold = self.operands, self.left, self.untold
        mode.tokens, mode.token_places, mode.lead = self.tokens, self.token_places, self.lead
        mode.share(self.parallel)
        return mode

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        role = _ROLES.get(func)
        if role is None:
            if self.roles and func in SOFTMAX:
                return self.softmax(func, args, kwargs or {})
            return func(*args) if kwargs is None else func(*args, **kwargs)
        kwargs = kwargs or {}
        if torch.compiler.is_compiling() is not self.compiled:  # names would get lost: run it as it is
            raise RuntimeError(BROKEN if self.compiled else WHOLE)
        if role:
            return func(*args, **kwargs) if self.muted else self.site(role, func, args, kwargs)
        if func is enter_module:
            return self.enter(*args)
        if func is give_output:
            return self.give(*args)
        if func is leave_module:
            return self.leave(*args)
        if func is within_model:
            return True
        if func is draw_layer:
            return self.drawn(*args, **kwargs)
        if func in (draw_standard, cached):
            return self.standard(*args) if func is draw_standard else self.cached(*args)
        if func is F.multi_head_attention_forward:
            return func(*args, **kwargs) if self.muted else multi_head_attention_forward(self, *args, **kwargs)
        return refuse_another()

    def enter(self, path: str, module: nn.Module) -> None:
        """A submodule begins."""
        door = door_of(module)
        if door is not None and door.state is not self.owner:
            refuse_another()
        self.modules.append((path, module))
        if path in self.placement.outputs:
            self.last = None  # of those inside
        self.muted += getattr(type(module), "noiseless", False)

    def leave(self, path: str) -> None:
        """A submodule has ended."""
        if self.modules[-1][0] == path:  # not so if a hook raised before the module was entered
            self.chip.leave(len(self.modules))
            _, module = self.modules.pop()
            self.muted -= getattr(type(module), "noiseless", False)

    def give(self, path: str, output: Any) -> Any:
        """The result of a submodule that was asked for, with noise, if it is not that of the last site inside."""
        first = None if self.muted else first_of(output)
        if first is None:
            if not (self.muted or output is None or isinstance(output, bool | int | float | str)):
                self.closed.setdefault(path, type(output).__name__)
            return output
        name = self.name("module")
        if not self.is_place(name, first.value):
            self.calls[name.rpartition("#")[0]] -= 1
            return output
        noise = self.noise_at(name)
        if noise is None and self.record is None:
            return output
        self.last = self.at(name, noise, first.value)
        return first.put(self.last)

    def cached(self, key: Tensor, value: Tensor, layer: int, cross: bool) -> tuple[Tensor, Tensor]:
        """Keys and values that a cache is to keep."""
        if self.muted or CACHE not in self.placement.outputs:
            return key, value
        made = []
        for kind, clean in (("cross_key" if cross else "key", key), ("cross_value" if cross else "value", value)):
            stem = f"{CACHE}:{kind}"
            self.calls[stem] = max(self.calls.get(stem, 0), layer + 1)
            name = f"{stem}#{layer}"
            made.append(self.at(name, self.noise_at(name), clean))
        return made[0], made[1]

    def is_place(self, name: str, value: Tensor) -> bool:
        """Whether the result of a module is a site, and not that of the last one inside."""
        return name in self.places if self.places and not self.tracing else not self.is_last(value)

    def is_last(self, value: Tensor) -> bool:
        """Whether a value is that of the last site, or a view of all of it."""
        last = self.last[0] if isinstance(self.last, tuple) and self.last else self.last
        if not isinstance(last, Tensor) or last.numel() != value.numel():
            return False
        return value is last or (value._base is not None and (value._base is last or value._base is last._base))

    def name(self, kind: str) -> str:
        """The name of the call of an operation that begins now."""
        if self.roles and kind in PREPARING and (part := self.part_at(kind)) is not None:
            return part
        stem = f"{self.modules[-1][0]}:{kind}"
        number = self.calls.get(stem, 0)
        self.calls[stem] = number + 1
        return f"{stem}#{number}"

    def names(self) -> list[str]:
        """The names of all sites so far."""
        calls = ((stem, count) for stem, count in self.calls.items() if stem.rpartition(":")[2] not in LOOKUPS)
        return [*self.inputs, *(f"{stem}#{k}" for stem, count in calls for k in range(count))]

    def site(self, kind: str, func: Any, args: Any, kwargs: dict[str, Any], row_dim: int | None = None) -> Any:
        """One call of an operation that makes a site, or some, or that looks up in an array and makes none."""
        if self.parallel is not None:
            self.parallel.see(kind, args, kwargs)
        if kind in LOOKUPS:
            return self._look_up(self.name(kind), kind, func, args, kwargs)
        self.last = self._sites(kind, func, args, kwargs, row_dim)
        return self.last

    def _sites(self, kind: str, func: Any, args: Any, kwargs: dict[str, Any], row_dim: int | None) -> Any:
        if kind in PREPARING and ".parametrizations." in f".{self.modules[-1][0]}":
            return func(*args, **kwargs)  # of weights, as spectral norm has it: no value goes in
        if kind not in SEVERAL:
            name = self.name(kind)
            value = self._site(name, kind, func, args, kwargs, row_dim)
            return self.attention(name, value, kwargs.get("out")) if self.roles else value
        pairs = pairs_of(kind, args, kwargs)
        if pairs is None:
            return func(*args, **kwargs)
        names = [self.name(kind) for _ in pairs]
        if len(names) == 1:
            value = self._site(names[0], kind, func, args, kwargs, row_dim, pairs[0](None))
            return self.attention(names[0], value, kwargs.get("out")) if self.roles else value
        chosen = (self.noise_at(name) is not None or self.hardware_at(name) is not None for name in names)
        if self.record is None and self.belonging is None and not any(chosen):
            return func(*args, **kwargs)
        value = None
        for name, pair in zip(names, pairs, strict=True):
            product = pair(value)
            value = self._site(name, kind, product.plainly, (), {}, row_dim, product)
        return value if (out := kwargs.get("out")) is None else out.copy_(value)

    def _look_up(self, name: str, kind: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """A look-up in an array, which is no site."""
        made = self.contracted(name, kind, func, args, kwargs, None, None)
        made = func(*args, **kwargs) if made is None else made
        if self.tracing:
            value = made[0] if isinstance(made, tuple) else made
            self.lookups.append(Entry(name, tuple(value.shape), value=value.detach()))
        return made

    def _site(
        self, name: str, kind: str, func: Any, args: Any, kwargs: dict[str, Any], row_dim: int | None,
        product: Product | None = None,
    ) -> Any:  # fmt: skip
        """The call with this name; `product` is what it multiplies, if that is known."""
        if func is Tensor.__rmatmul__:
            func, args = torch.matmul, args[::-1]
        noise = self.noise_at(name)
        if kind == "batch_norm":
            self._refuse_mixed_draws(name, args, kwargs)
        if kind in PREPARING and noise is not None and name not in self.places:
            product = self._untraced(name, product or product_of(kind, args, kwargs))
        made = None
        if kind in _WITH_ARRAYS:
            made = self.contracted(name, kind, func, args, kwargs, row_dim, product)
        if made is None and noise is None and self.record is None and self.belonging is None:
            return func(*args, **kwargs)
        if kind in RECURRENT:
            return with_noise(self, name, noise, args, func(*args, **kwargs) if made is None else made)
        if made is not None:
            target = args[0] if in_place(func, args, kwargs) else kwargs.get("out")
            made = self._put(name, noise, made, row_dim)
            return made if target is None else target.copy_(made)
        if (out := kwargs.get("out")) is not None:
            kwargs = {k: v for k, v in kwargs.items() if k != "out"}
            return out.copy_(self.at(name, noise, func(*args, **kwargs), row_dim))
        if in_place(func, args, kwargs):  # autograd may keep the noiseless value, so that gets memory of its own
            target = args[0] if args else kwargs.pop("input")
            return target.copy_(self.at(name, noise, func(target.clone(), *args[1:], **kwargs), row_dim))
        alone = self.record is None and self.belonging is None and row_dim is None
        if kind in CONTRACTION_KINDS and isinstance(noise, Noise) and alone:
            fused = self._fused(name, CONTRACTION_KINDS[kind], noise, args, kwargs)
            if fused is not None:
                return fused
        return self._put(name, noise, func(*args, **kwargs), row_dim)

    def _untraced(self, name: str, product: Product | None) -> Product | None:
        """A product, of which it is found out whether it is one of weights, which has no rows."""
        if product is not None and self.prepares(name, product):
            self.alone.add(name)
        return product

    def _put(self, name: str, noise: Noise | Change | None, out: Any, row_dim: int | None) -> Any:
        """A result with its noise."""
        if isinstance(out, tuple):  # the noise is on the first: not on indices, not on a cell's memory
            return (self.at(name, noise, out[0], row_dim), *out[1:])
        return self.at(name, noise, out, row_dim)

    def _refuse_mixed_draws(self, name: str, args: Any, kwargs: dict[str, Any]) -> None:
        training = kwargs["training"] if "training" in kwargs else len(args) > 5 and args[5]
        of_weights = self.places.get(name) == ALONE  # which a norm of theirs standardises
        if training and not of_weights and self.key.draws is not None and self.key.draws.shape[0] > 1:
            raise RuntimeError(
                f"{name!r}: batch norm in training mode would mix the draws of a batch; "
                "use model.eval(), or run one draw at a time"
            )
