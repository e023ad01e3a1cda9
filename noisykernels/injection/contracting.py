"""What the contractions of a running forward meet of hardware: which devices, which arrays, under which keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from noisykernels._util.tensors import dequantized
from noisykernels.hardware.contraction import Contraction
from noisykernels.hardware.device import Device
from noisykernels.injection.arrays import Arrays
from noisykernels.injection.columns import Wider, with_column
from noisykernels.injection.drawing import Drawing
from noisykernels.injection.kinds import CELLS, CONTRACTION_KINDS, LOOKUPS, PREPARING, RECURRENT
from noisykernels.injection.laid import leads
from noisykernels.injection.lookups import lookup_on_hardware, table_of
from noisykernels.injection.memory import Array, Memory, array_of_views
from noisykernels.injection.on_hardware import on_hardware
from noisykernels.injection.products import Product, product_of
from noisykernels.injection.recurrent import cell_on_hardware, layer_on_hardware
from noisykernels.injection.tokens import ROUTED, Place, Tokens, lost
from noisykernels.noise.arguments import Chip, Key
from noisykernels.noise.contract import SITE_LIMIT, hashed_id

__all__ = ["Contracting"]


class Contracting(Drawing):
    """The part of `mode.SiteMode` that puts hardware into contractions."""

    arrays: list[str]
    batch: int
    chip: Arrays
    column: bool
    memory: Memory | None
    on_hardware: bool
    operands: Mapping[str, Array | None]
    tracing: bool

    def hardware_at(self, name: str) -> Sequence[Device] | None:
        """The placement's devices at a contraction of the module that runs now."""
        module = self.modules[-1][1]
        self.arrays.append(name)
        return self.spot(name, module).hardware if self.always or self.placement.on(module) else None

    def attended(self, name: str, args: Any, kwargs: dict[str, Any], row_dim: int | None) -> Tensor | None:
        """See `attending.Attending`."""
        raise NotImplementedError

    def contracted(
        self, name: str, kind: str, func: Any, args: Any, kwargs: dict[str, Any], row_dim: int | None,
        product: Product | None,
    ) -> Any:  # fmt: skip
        """An operation with products as its hardware makes it; None where there is none."""
        if kind == "attention":
            return self.attended(name, args, kwargs, row_dim)
        if self.on_hardware or self.record is not None:
            product = self._uses_array(name, kind, args, kwargs, product)
            if kind in PREPARING and product is not None and self.prepares(name, product):
                return None
        hardware = self.hardware_at(name)
        if hardware is None or self.tracing:
            return None
        return self.made_by(name, kind, hardware, func, args, kwargs, row_dim, product)

    def made_by(
        self, name: str, kind: str, hardware: Sequence[Device], func: Any, args: Any, kwargs: dict[str, Any],
        row_dim: int | None = None, product: Product | None = None,
    ) -> Any:  # fmt: skip
        """An operation as these devices make it, from operands of which this process may hold parts."""
        if self.parallel is None:
            return self.on_devices(name, kind, hardware, func, args, kwargs, row_dim, product)

        def run(args: Any, kwargs: dict[str, Any], product: Product | None) -> Any:
            return self.on_devices(name, kind, hardware, func, args, kwargs, row_dim, product)

        return self.parallel.contracted(name, run, args, kwargs, product)

    def on_devices(
        self, name: str, kind: str, hardware: Sequence[Device], func: Any, args: Any, kwargs: dict[str, Any],
        row_dim: int | None = None, product: Product | None = None,
    ) -> Any:  # fmt: skip
        """An operation as these devices make it; None where they are left out."""
        kwargs = {k: v for k, v in kwargs.items() if k != "out"}
        args, kwargs = tuple(map(dequantized, args)), {k: dequantized(v) for k, v in kwargs.items()}
        if product is not None:
            a, b = map(dequantized, product.operands)
            product = replace(product, operands=(a, b))
        if self.tokens is not None:
            return self._on_devices_by_token(self.tokens, name, kind, hardware, func, args, kwargs, product)
        if kind in RECURRENT:
            return layer_on_hardware(self, name, kind, hardware, func, args)
        if kind in CELLS:
            return cell_on_hardware(self, name, kind, hardware, args)
        made: Tensor | None
        if kind in LOOKUPS:
            made = lookup_on_hardware(self, name, hardware, func, args, kwargs, self.rows_at(name, row_dim))
        else:
            made = on_hardware(self, name, kind, hardware, args, kwargs, row_dim, product)
        if made is None:
            self.leave_out(name, args[0] if args else func(**kwargs))
        return made

    def _on_devices_by_token(
        self, tokens: Tokens, name: str, kind: str, hardware: Sequence[Device], func: Any, args: tuple[Any, ...],
        kwargs: dict[str, Any], product: Product | None,
    ) -> Tensor:  # fmt: skip
        """The same where rows are tokens: those of the operand that is no array come to lie along its dimension 0."""
        product = product or (product_of(kind, args, kwargs) if kind in PREPARING else None)
        array = None if product is None else self.array_at(name, product)
        x = kwargs.get("input", args[0] if args else None)
        if kind in LOOKUPS and isinstance(x, Tensor) and x.is_floating_point():  # as torch.embedding has it
            x = args[1]
        if product is not None:
            x = None if array is None else product.operands[1 - array.operand]
        elif kind not in ("linear", *LOOKUPS):
            x = None
        place = self.token_places.get(name)
        if (isinstance(place, str) or place == ROUTED) and all(d.of_array or not d.operands for d in hardware):
            with self.without_tokens():  # the same for all of them
                same: Tensor = self.on_devices(name, kind, hardware, func, args, kwargs)
                return same
        flat = isinstance(place, Place) and place.merged and (place.batch, place.stream) == (0, 0)
        given = any(a is x for a in (*args, *kwargs.values()))
        if not isinstance(x, Tensor) or not (flat or (leads(place) and given)):
            raise RuntimeError(
                f"site {name!r}: hardware is for linear layers, products with an array and look-ups where rows are "
                "tokens, along the first dimensions; leave it out, or give ids of rows in place of TokenRows"
            )
        like = x if not flat else x.unflatten(0, (self.key.batch, -1))
        assert isinstance(place, Place)
        ids = None if len(like) != self.key.batch else tokens.ids_of(place, like.shape[1], place.size)
        if ids is None:
            raise RuntimeError(lost(name, x, f"it is not of all {self.key.batch} rows (draws x sequences)"))
        with self.by_token(ids):
            if not flat:
                args = tuple(a.flatten(0, 1) if a is x else a for a in args)
                kwargs = {n: a.flatten(0, 1) if a is x else a for n, a in kwargs.items()}
            made: Tensor = self.on_devices(name, kind, hardware, func, args, kwargs)
        if made.numel() != ids.shape[1] * self.key.batch * place.size:
            raise RuntimeError(lost(name, made, f"which of the call's tokens its {ids.shape[1]} are is not known"))
        return made if flat else made.unflatten(0, like.shape[:2])

    def part_key(self, name: str, part: str, step: int | None, like: Tensor) -> tuple[Key, Chip]:
        """The key of one of several arrays of a site, in one of several steps, and the array."""
        told = self.key_at(name)
        stem, _, number = name.rpartition("#")
        path, _, _ = stem.rpartition(":")
        first = self.chip.of.get(name, name).rpartition("#")
        array = self.chip.of.get(name, name)
        if part:
            fresh = f"{path}:{part}#{number}" if step is None else f"{path}:{part}#{number}@{step}"
            told["site"] = self.part_id(fresh)
            array = f"{first[0].rpartition(':')[0]}:{part}#{first[2]}"
        rows = told["rows"] if like is not None else None
        key = Key.of(name, like.device, told["seed"], told["site"], told["draws"], rows, 0)
        return key, Chip(self.part_id(array) if part else self._id(array), self.key.array_seed)

    def at_level(self, name: str, hardware: Sequence[Device]) -> Sequence[Device]:
        """Devices with the key's level applied."""
        level = self.key.level
        if level is None:
            return hardware
        if level.dim() > 0:
            raise RuntimeError(f"site {name!r}: hardware has no level for each row; give noise_state() one level")
        return [device.scaled(level) for device in hardware]

    def with_column(self, contraction: Contraction, x: Tensor, weight: Tensor, bias: Tensor) -> Wider:
        """A contraction with its bias in the array."""
        return with_column(contraction, x, weight, bias)

    def array_at(self, name: str, product: Product) -> Array | None:
        """Which operand of a product is an array."""
        if name in self.operands:
            return self.operands[name]
        if self.compiled:
            return array_of_views(product.operands, self.modules[-1][1])
        return self._memory().array(product.operands)

    def prepares(self, name: str, product: Product) -> bool:
        """Whether no value goes into a product: it makes one weight of others, or what is the same for all rows."""
        rows = self.rows_at(name)
        if name in self.places:
            return rows is not None and rows.outer == 0
        if self.compiled:
            return all(array_of_views((t,), self.modules[-1][1]) is not None for t in product.operands)
        return self._memory().holds(product.operands)

    def _memory(self) -> Memory:
        if self.memory is None:
            self.memory = Memory(self.modules[0][1])
        return self.memory

    def _uses_array(
        self, name: str, kind: str, args: Any, kwargs: dict[str, Any], product: Product | None
    ) -> Product | None:
        """What a contraction multiplies, where that had to be found out; takes note of the array."""
        if kind in RECURRENT or kind in CELLS or kind in LOOKUPS:
            weights = _weights_of(kind, args, kwargs)
            self.chip.first(name, self.modules, weights[0])
            if self.chip.parameters is not None:
                self.chip.read[name] = self.chip.parameters.of(weights)
            return product
        if kind in CONTRACTION_KINDS:
            self.chip.first(name, self.modules, args[1] if len(args) > 1 else kwargs["weight"])
            if self.tracing and kind == "linear":
                self._note(name, product_of(kind, args, kwargs))
            return product
        product = product or product_of(kind, args, kwargs)
        if self.tracing:
            self._note(name, product)
        array = None if product is None else self.array_at(name, product)
        if product is not None and array is not None:
            self.chip.first(name, self.modules, product.operands[array.operand])
        return product

    def _note(self, name: str, product: Product | None) -> None:
        """Tells the trace of the operands of a product."""
        if product is not None:
            shapes = tuple(tuple(t.shape) for t in product.operands)
            self.noted[name] = shapes, self._memory().array(product.operands)

    def chip_at(self, name: str) -> Chip:
        """The array that the contraction with this name uses."""
        return Chip(self._id(self.chip.of.get(name, name)), self.key.array_seed)

    def part_id(self, name: str) -> int:
        """The number of one of several arrays or steps of a site: the next one that is free."""
        number = self.ids.get(name)
        if number is None:
            number = hashed_id(name)
            if not self.compiled:  # a graph would be guarded on the table
                taken = set(self.ids.values())
                while number in taken:
                    number = (number + 1) % SITE_LIMIT
                self.ids[name] = number
        return number


def _weights_of(kind: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The weights of an operation that has several arrays; by the first it is told from others of its module."""
    if kind in LOOKUPS:
        return [table_of(args, kwargs)[1]]
    if kind in CELLS:
        return list(args[2:4])
    return [w for w in args[2 if isinstance(args[3], bool) else 3] if w.dim() > 1]
