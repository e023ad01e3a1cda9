"""Noise in a running forward: a torch-function mode sees every operation that a model calls, from
modules and from plain functions alike, and puts noise on those that are sites.

Nothing in the model is replaced, so parameters, keys, hooks and sharing stay as they are. What is
chosen (`Placement`) and under which key (`ForwardKey`) is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisykernels._util.tensors import is_plain
from noisykernels._util.warning import warn_user
from noisykernels.hardware.device import Device
from noisykernels.injection.arrays import Arrays
from noisykernels.injection.attending import Attending
from noisykernels.injection.attention import multi_head_attention_forward
from noisykernels.injection.calls import called, perturb_plain
from noisykernels.injection.doors import door_of
from noisykernels.injection.kinds import (
    CELLS,
    CONTRACTION_KINDS,
    CONTRACTIONS,
    KINDS,
    LOOKUPS,
    PREPARING,
    RECURRENT,
    SEVERAL,
    in_place,
)
from noisykernels.injection.memory import Array, Memory
from noisykernels.injection.placement import Placement
from noisykernels.injection.products import Product, pairs_of, product_of
from noisykernels.injection.record import Entry, Record
from noisykernels.injection.rows import ALONE, FIRST, Rows, apart, no_rows, together
from noisykernels.injection.site import PARTS, kind_of
from noisykernels.injection.spot import Spot, scale_and_repeats, spot_of
from noisykernels.injection.values import Change, changed
from noisykernels.nn.functional import linear
from noisykernels.nn.signals import (
    STANDARD,
    draw_layer,
    draw_standard,
    enter_model,
    enter_module,
    give_output,
    leave_module,
    refuse_another,
    within_model,
)
from noisykernels.noise.contract import hashed_id
from noisykernels.noise.description import Noise
from noisykernels.noise.functional import perturb


@dataclass
class ForwardKey:
    """What the noise of one forward depends on, at all of its sites: a call at one of them has a `Key` of its own."""

    seed: Tensor | None  # None only where no noise is drawn
    draws: Tensor | None
    rows: Tensor | None
    batch: int  # rows of every draw together
    level: Tensor | None = None  # factor of all noise: 0-d, or one for each row
    array_seed: Tensor | None = None  # of what belongs to the chip, where the seed is that of one call


_perturb = torch.ops.noisykernels.perturb.default._op

WHOLE = "a part of an injected model cannot be compiled, only the whole model"

_WITH_ARRAYS = frozenset((*CONTRACTIONS, *RECURRENT, *CELLS, "attention"))
LEFT_OUT = "rows cannot be told apart there, so nothing enters at"

# Functions that the mode answers itself; every other one that makes no site goes its way at once.
_NOTICES = (
    enter_module,
    leave_module,
    give_output,
    enter_model,
    within_model,
    draw_layer,
    draw_standard,
    F.multi_head_attention_forward,
)
_ROLES: dict[Any, str] = KINDS | dict.fromkeys(_NOTICES, "")


class SiteMode(Attending):
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
        self.inputs: list[str] = []  # sites that are arguments of the model
        self.arrays: list[str] = []  # sites at which hardware can be
        self.valueless: list[str] = []  # those with noise whose values take none
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

    def resumed(self) -> SiteMode:
        """A mode that goes on from here, for a later recomputation of what follows."""
        root = self.modules[0][1]
        return self.as_far_as_this(SiteMode(self.placement, self.key, root, self.ids, self.places))

    def as_far_as_this(self, mode: SiteMode) -> SiteMode:
        """Another mode, brought to where this one stands."""
        mode.owner = self.owner
        mode.modules, mode.calls, mode.muted = list(self.modules), dict(self.calls), self.muted
        mode.chip = self.chip.copy()
        mode.operands, mode.left, mode.untold = self.operands, self.left, self.untold
        return mode

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        role = _ROLES.get(func)
        if role is None:
            return func(*args) if kwargs is None else func(*args, **kwargs)
        kwargs = kwargs or {}
        if torch.compiler.is_compiling() and not self.compiled:  # names would get lost: run it as it is
            raise RuntimeError(WHOLE)
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
            return self._layer(*args, **kwargs)
        if func is draw_standard:
            return self._standard(*args)
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
        values = [output] if isinstance(output, Tensor) else list(output) if isinstance(output, tuple) else []
        number = next((i for i, v in enumerate(values) if isinstance(v, Tensor) and v.is_floating_point()), None)
        if self.muted or number is None:
            return output
        name = self.name("module")
        known = (name not in self.places) if self.places else self.is_last(values[number])
        if (known and not self.tracing) or self.is_last(values[number]):
            self.calls[name.rpartition("#")[0]] -= 1
            return output
        noise = self.noise_at(name)
        if noise is None and self.record is None:
            return output
        self.last = values[number] = self.at(name, noise, values[number])
        if isinstance(output, Tensor):
            return values[0]
        return type(output)(*values) if hasattr(output, "_fields") else tuple(values)

    def is_last(self, value: Tensor) -> bool:
        """Whether a value is that of the last site, or a view of all of it."""
        last = self.last[0] if isinstance(self.last, tuple) and self.last else self.last
        if not isinstance(last, Tensor) or last.numel() != value.numel():
            return False
        return value is last or (value._base is not None and (value._base is last or value._base is last._base))

    def is_known(self, spot: Spot, value: Tensor) -> bool:
        """Whether all about the noise of a value is known beforehand: levels, place, and that its rows come first."""
        return (
            spot.args is not None
            and spot.dim == 0
            and value.dim() > 0
            and len(value) == self.key.batch
            and value.device == self.place
        )

    def spot(self, name: str, module: nn.Module) -> Spot:
        """What is known of the site of this name, whose innermost module is `module`."""
        spot = self.spots.get(name)
        if spot is None:
            spot = spot_of(self.placement, name, module, self._id, self.rows_at)
            if not self.compiled:  # a graph would be guarded on the table
                self.spots[name] = spot
        return spot

    def name(self, kind: str) -> str:
        """The name of the call of an operation that begins now."""
        stem = f"{self.modules[-1][0]}:{kind}"
        number = self.calls.get(stem, 0)
        self.calls[stem] = number + 1
        return f"{stem}#{number}"

    def names(self) -> list[str]:
        """The names of all sites so far."""
        calls = ((stem, count) for stem, count in self.calls.items() if stem.rpartition(":")[2] not in LOOKUPS)
        return [*self.inputs, *(f"{stem}#{k}" for stem, count in calls for k in range(count))]

    def noise_at(self, name: str) -> Noise | Change | None:
        """The placement's noise at a site of the module that runs now."""
        module = self.modules[-1][1]
        return self.spot(name, module).noise if self.always or self.placement.on(module) else None

    def hardware_at(self, name: str) -> Sequence[Device] | None:
        """The placement's devices at a contraction of the module that runs now."""
        module = self.modules[-1][1]
        self.arrays.append(name)
        return self.spot(name, module).hardware if self.always or self.placement.on(module) else None

    def site(self, kind: str, func: Any, args: Any, kwargs: dict[str, Any], row_dim: int | None = None) -> Any:
        """One call of an operation that makes a site, or some, or that looks up in an array and makes none."""
        if kind in LOOKUPS:
            return self._look_up(self.name(kind), kind, func, args, kwargs)
        self.last = self._sites(kind, func, args, kwargs, row_dim)
        return self.last

    def _sites(self, kind: str, func: Any, args: Any, kwargs: dict[str, Any], row_dim: int | None) -> Any:
        if kind in PREPARING and ".parametrizations." in f".{self.modules[-1][0]}":
            return func(*args, **kwargs)  # of weights, as spectral norm has it: no value goes in
        if kind not in SEVERAL:
            return self._site(self.name(kind), kind, func, args, kwargs, row_dim)
        pairs = pairs_of(kind, args, kwargs)
        if pairs is None:
            return func(*args, **kwargs)
        names = [self.name(kind) for _ in pairs]
        if len(names) == 1:
            return self._site(names[0], kind, func, args, kwargs, row_dim, pairs[0](None))
        chosen = (self.noise_at(name) is not None or self.hardware_at(name) is not None for name in names)
        if self.record is None and not any(chosen):
            return func(*args, **kwargs)
        value: Any = None
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
        if made is None and noise is None and self.record is None:
            return func(*args, **kwargs)
        if kind in RECURRENT:
            return self._recurrent(name, noise, args, func(*args, **kwargs) if made is None else made)
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
        if kind in CONTRACTION_KINDS and isinstance(noise, Noise) and self.record is None and row_dim is None:
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

    def at(self, name: str, noise: Noise | Change | None, clean: Tensor, row_dim: int | None = None) -> Tensor:
        """The noisy value at a site. `row_dim` overrides what is known of the site's rows."""
        if self.record is not None:
            operands, array = self.noted.pop(name, ((), None))
            within = torch._C._functorch.is_functorch_wrapped_tensor(clean)  # a transform, which has ended by then
            value = clean.detach().clone() if name in self.wanted and not within else None
            self.record.append(Entry(name, tuple(clean.shape), operands, array, value))
            return clean
        if noise is None or not clean.is_floating_point():
            if noise is not None:
                self.valueless.append(name)
            return clean
        spot = self.spots.get(name)
        if spot is not None and spot.noise is noise and row_dim is None and self.is_known(spot, clean):
            if self.plain is not None and spot.plain is not None:
                noisy = perturb_plain(clean, *self.plain, *spot.plain)  # type: ignore[arg-type]
                if noisy is not None:
                    return noisy
            add, mul, mode, kind = spot.args  # type: ignore[misc]
            return called(_perturb, clean, 0, add, mul, *self.common, spot.id, mode, kind, False)
        rows = self.rows_at(name, row_dim)
        value = None if rows is None else apart(clean, rows, self.key.batch)
        if value is None or rows is None:
            self.leave_out(name, clean)
            return clean
        return together(self._noisy(name, noise, value, rows), rows, clean)

    def _noisy(self, name: str, noise: Noise | Change, value: Tensor, rows: Rows) -> Tensor:
        if not isinstance(noise, Noise):
            return changed(self, name, noise, value, rows)
        noise, repeats = self._levels(name, noise, value.numel() // max(1, value.shape[0]), value.dim())
        key = self.key_at(name, rows)
        if repeats == 1:
            return perturb(value, noise, **key)
        if (draws := key.pop("draws")) is None:
            draws = torch.zeros(1, dtype=torch.int64, device=value.device)
        parts = [perturb(value, noise, **key, draws=draws * repeats + r) for r in range(repeats)]
        return torch.stack(parts).mean(0)

    def _levels(self, name: str, noise: Noise, item_size: int, rank: int) -> tuple[Noise, int]:
        """The noise with the key's level and its published options applied, and the number of explicit repeats left.

        `rank` is that of the value, whose dimension 0 counts rows.
        """
        if (level := self.key.level) is not None:
            noise = noise.scaled(level if level.dim() == 0 else level.reshape(1, -1, *[1] * (rank - 1)))
        placement, repeats = self.placement, self.placement.repeats_at(name)
        scale = 1.0 / item_size if placement.normalize_to_input_size and item_size > 0 else 1.0
        scale, repeats = scale_and_repeats(noise, repeats, scale)
        return (noise if scale == 1.0 else noise.scaled(scale)), repeats

    def key_at(self, name: str, rows: Rows = FIRST) -> dict[str, Any]:
        """The key of a site whose value holds its rows so, as the keywords of our operators say it."""
        key = self.key
        if rows.outer == 0:
            if key.draws is not None and key.draws.shape[0] != 1:
                raise RuntimeError(
                    f"site {name!r}: its value is the same for all rows: run one draw at a time, or give "
                    "inject() an example_input"
                )
            return {"seed": key.seed, "site": self._id(name), "draws": key.draws, "rows": None}
        return {"seed": key.seed, "site": self._id(name), "draws": key.draws, "rows": key.rows}

    def _id(self, name: str) -> int:
        """The number of a site; a collision that was not settled beforehand is an error."""
        number = self.ids.get(name)
        if number is None:
            number = hashed_id(name)
            if number in self.ids.values():
                raise RuntimeError(
                    f"site {name!r} has the same number as another; give inject() an example_input, which settles it"
                )
            if not torch.compiler.is_compiling():  # a graph would be guarded on the table
                self.ids[name] = number
        return number

    def _fused(
        self, name: str, op: Callable[..., Tensor], noise: Noise, args: Any, kwargs: dict[str, Any]
    ) -> Tensor | None:
        """A contraction with its noise in one operator; None where the noise must come after."""
        kwargs = dict(kwargs)
        x, rest = (args[0], args[1:]) if args else (kwargs.pop("input"), ())
        weight = rest[0] if rest else kwargs["weight"]
        batched = x.dim() > 1 if op is linear else x.dim() == weight.dim()
        plain = (is_plain(weight) or torch.compiler.is_compiling()) and not x.is_complex()
        if not (batched and plain) or x.shape[0] != self.key.batch or self.rows_at(name) != FIRST:
            return None
        if self.placement.normalize_to_input_size:
            return None
        noise, repeats = self._levels(name, noise, 0, x.dim())
        return op(x, *rest, **kwargs, noise=noise, **self.key_at(name)) if repeats == 1 else None

    def _layer(
        self,
        op: Callable[..., Tensor],
        kind: str,
        noise: Noise | None,
        x: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """The operation of a noisy layer: its own noise and hardware, or the placement's."""
        name = self.name(kind)
        own, hardware = self.placement.layers_own, kwargs.pop("hardware", None)
        chosen = noise if own else self.noise_at(name)
        hardware = hardware if own else self.hardware_at(name)
        if kind != "noise" and (hardware is not None or self.on_hardware or self.record is not None):
            self.chip.first(name, self.modules, args[0])
        if hardware is not None and not self.tracing:
            made = self.on_devices(name, kind, hardware, getattr(F, kind), (x, *args), kwargs)
            if made is not None:
                return self.at(name, chosen, made)
        # The size is known, and a function asked, when the clean value is there.
        alone = self.placement.normalize_to_input_size or not isinstance(chosen, Noise)
        if isinstance(chosen, Noise) and self.record is None and not alone:
            scaled, repeats = self._levels(name, chosen, 0, x.dim())
            alone = repeats > 1
        if self.record is not None or chosen is None or alone:
            clean = x if kind == "noise" else getattr(F, kind)(x, *args, **kwargs)
            return self.at(name, chosen, clean)
        if x.dim() == 0 or x.shape[0] != self.key.batch or self.rows_at(name) != FIRST:
            raise RuntimeError(no_rows(name, self.key.batch, x))
        return op(x, *args, noise=scaled, **kwargs, **self.key_at(name))

    def leave_out(self, name: str, value: Tensor) -> None:
        """What was asked for does not enter: an error where rows were never looked for, or this very site was meant."""
        known = name in self.places or kind_of(name) in (*PREPARING, *PARTS)  # any value may come out of a product
        if not known or self.placement.means(name):
            raise RuntimeError(no_rows(name, self.key.batch, value))
        if name not in self.left and not self.compiled:
            self.left.add(name)
            self.untold.append(name)

    def tell_left_out(self) -> None:
        """One warning of the sites that this forward was the first to leave out."""
        if self.untold:
            hint = "" if self.places else "; with example_input=... rows are looked for"
            warn_user(f"inject: {LEFT_OUT} {', '.join(map(repr, self.untold))}{hint}")
            self.untold.clear()

    def _standard(self, x: Tensor, name: str) -> Tensor:
        number = self.calls.get(name, 0)
        self.calls[name] = number + 1
        return perturb(torch.zeros_like(x), STANDARD, **self.key_at(f"{name}#{number}"))

    def _recurrent(self, name: str, noise: Noise | Change | None, args: Any, result: Any) -> Any:
        """LSTM, GRU, RNN: noise on the output, and on that part of the state that is output."""
        if not isinstance(args[3], bool):  # packed: (input, batch_sizes, ...), not (input, state, ...)
            if self.record is not None or noise is None:
                return result
            raise RuntimeError(
                f"site {name!r}: packed sequences have no row dimension; "
                "pad them instead, or leave the site out with where=..."
            )
        out, hidden, *memory = result
        bidirectional, batch_first = args[-2:]
        noisy = self.at(name, noise, out, 0 if batch_first else 1)
        if noisy is not out:
            time = 1 if batch_first else 0
            last = noisy.select(time, -1).unsqueeze(0)
            if bidirectional:  # the backward direction ends at the first step
                forward, _ = last.chunk(2, -1)
                _, backward = noisy.select(time, 0).unsqueeze(0).chunk(2, -1)
                last = torch.cat([forward, backward])
            hidden = torch.cat([hidden[: len(hidden) - len(last)], last])
        return (noisy, hidden, *memory)

    def _refuse_mixed_draws(self, name: str, args: Any, kwargs: dict[str, Any]) -> None:
        training = kwargs["training"] if "training" in kwargs else len(args) > 5 and args[5]
        if training and self.key.draws is not None and self.key.draws.shape[0] > 1:
            raise RuntimeError(
                f"{name!r}: batch norm in training mode would mix the draws of a batch; "
                "use model.eval(), or run one draw at a time"
            )

    def rows_at(self, name: str, row_dim: int | None = None) -> Rows | None:
        """Where the value at a site holds its rows; None: they are mixed."""
        if row_dim is None and "row_dims" in self.placement.pairs:
            row_dim = self.placement.row_dim_at(name)
        if row_dim is not None:
            return Rows(row_dim)
        return ALONE if name in self.alone else self.places.get(name, FIRST)
