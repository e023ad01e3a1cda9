"""Weights as devices hold them, made in panels of output features, and made again for the gradient: what a draw of a
large layer takes beside the layer is a small part of it.

A panel is some of a weight's rows, of which noise is that of the whole, as it is keyed by row and element. What a
device must know of all rows (the largest weight, what all devices conduct) is measured before, panel by panel too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from noisykernels._util.runtime import as_autocast, as_given
from noisykernels._util.tensors import only_looked_at, unseen
from noisykernels.hardware.contraction import Contraction
from noisykernels.hardware.device import Device, Draw

__all__ = ["LARGE", "Cells", "Parts", "held_by", "largest_of_all", "level_of_rows", "rows_of_panel", "through_cells"]

LARGE = 1 << 19  # weights, from which on a layer is made in panels
SHARE = 6  # what a panel takes is at most this part of all weights
BLOCKS = 16  # parts of a weight whose rows are inputs, each of which is held while it is multiplied
LEAST, MOST = 1024, 1 << 16  # weights of a panel, be that more or not: of fewer the calls take long, more fit no cache

Parts = Callable[[], Iterator[tuple[Tensor, Draw]]]  # of a weight, in order


class Cells(Device):
    """A device that holds weights, any rows of a weight as it holds the whole.

    A subclass overrides `cells`, and `measure` where it must know something of all rows.
    """

    takes: tuple[int, int]
    """How many values come up at once for each weight, and how many for a gradient: by it panels are cut."""

    @property
    def by_channel(self) -> bool:
        """Whether something is taken over each output feature."""
        return False

    @property
    def by_part(self) -> bool:
        """Whether something is taken over parts of what makes an output feature: any rows must hold all of it."""
        return False

    def measure(self, parts: Parts) -> Any:
        """What `cells` must know of the whole weight, from its parts; it takes part in no gradient."""
        return None

    def cells(self, weight: Tensor, draw: Draw, known: Any) -> Tensor:
        """What is held instead of some rows of a weight, those from ``draw.first`` on."""
        raise NotImplementedError

    def weight(self, weight: Tensor, draw: Draw) -> Tensor:
        """See `Device`."""
        return self.cells(weight, draw, self.measure(lambda: iter([(weight.detach(), draw)])))


class _Panel(NamedTuple):
    """Rows of a weight, and of x the channels that they take: all of them, or those of some groups."""

    first: int
    size: int
    channels: slice
    groups: int


def _panels(contraction: Contraction, weight: Tensor, takes: int) -> list[_Panel]:
    rows, inputs = len(weight), weight.shape[1] if weight.dim() > 1 else 1
    each = rows // (contraction.groups if contraction.layout is None and not contraction.transposed else 1)
    size = rows_of_panel(weight, takes)
    found = []
    if size >= each:
        some = size // each
        for group in range(0, rows // each, some):
            count = min(some, rows // each - group)
            found.append(_Panel(group * each, count * each, slice(group * inputs, (group + count) * inputs), count))
        return found
    for first in range(0, rows, each):
        group = first // each
        channels = slice(group * inputs, (group + 1) * inputs)
        found += [_Panel(first + i, min(size, each - i), channels, 1) for i in range(0, each, size)]
    return found


@dataclass(frozen=True)
class _Work:
    """A weight's way through devices, and a contraction with what they hold.

    Args:
        devices: that hold it, one after the other.
        draw: of the whole weight.
        known: what each has measured.
        panels: of the weight.
        finer: those in which a gradient is made.
        contract: whether the contraction is part of it; else the weight that is held is what is wanted.
        dtype: of operands of the contraction.
    """

    devices: Sequence[Cells]
    draw: Draw
    known: Sequence[Any]
    panels: Sequence[_Panel]
    finer: Sequence[_Panel]
    contract: bool
    dtype: torch.dtype

    def held(self, weight: Tensor, first: int) -> Tensor:
        """What is held instead of some rows."""
        draw = replace(self.draw, first=first)
        for device, known in zip(self.devices, self.known, strict=True):
            weight = device.cells(weight, draw, known)
        return weight

    def run(self, x: Tensor | None, weight: Tensor, panel: _Panel) -> Tensor:
        """The result of a panel, from its channels and rows."""
        held = self.held(weight, panel.first)
        if x is None:
            return held
        contraction = self.draw.contraction
        if contraction.geometry is not None:
            contraction = Contraction(contraction.name, (*contraction.geometry[:5], panel.groups))
        with as_given(x.device):
            return contraction(x, held.to(self.dtype))

    def input(self, x: Tensor | None, panel: _Panel) -> Tensor | None:
        """The channels of x that a panel takes."""
        if x is None or self.draw.contraction.geometry is None:
            return x
        return x[:, panel.channels]

    def output(self, y: Tensor, panel: _Panel) -> Tensor:
        """The part of the result that a panel gives."""
        linear = self.draw.contraction.geometry is None
        return y.narrow((-1 if linear else 1) if self.contract else 0, panel.first, panel.size)


class _InPanels(torch.autograd.Function):
    """The result of a `_Work`; its gradient runs every panel again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor | None, weight: Tensor, work: _Work) -> Tensor:
        ctx.work = work
        ctx.save_for_backward(x, weight)
        with unseen():
            out: Tensor | None = None
            for panel in work.panels:
                part = work.run(work.input(x, panel), weight.narrow(0, panel.first, panel.size), panel)
                if out is None:
                    shape = list(part.shape)
                    shape[(-1 if work.draw.contraction.geometry is None else 1) if work.contract else 0] = len(weight)
                    out = part.new_empty(shape)
                work.output(out, panel).copy_(part)
            assert out is not None
            return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        work: _Work = ctx.work
        x, weight = ctx.saved_tensors
        need_x, need_w, _ = ctx.needs_input_grad
        if torch.is_grad_enabled():  # a gradient of the gradient: as a whole, which autograd can follow
            whole = _Panel(0, len(weight), slice(None), work.draw.contraction.groups)
            wanted = [t for t, need in ((x, need_x), (weight, need_w)) if need]
            found = list(torch.autograd.grad(work.run(x, weight, whole), wanted, grad, create_graph=True))
            return found.pop(0) if need_x else None, found.pop(0) if need_w else None, None
        dx = torch.zeros_like(x) if need_x else None
        dw = torch.empty_like(weight) if need_w else None
        for panel in work.finer:
            rows = weight.narrow(0, panel.first, panel.size).detach().requires_grad_(need_w)
            taken = work.input(x, panel)
            if taken is not None:
                taken = taken.detach().requires_grad_(need_x)
            with torch.enable_grad():
                part = work.run(taken, rows, panel)
            wanted = [t for t, need in ((taken, need_x), (rows, need_w)) if need]
            found = list(torch.autograd.grad(part, wanted, work.output(grad, panel)))
            if dx is not None:
                here = work.input(dx, panel)
                assert here is not None
                here += found.pop(0)
            if dw is not None:
                dw.narrow(0, panel.first, panel.size).copy_(found.pop(0))
        return dx, dw, None


class _AlongInputs(torch.autograd.Function):
    """The contraction of x with a weight whose rows are inputs, as `x @ w` has it: what blocks of rows give, added up;
    its gradient makes every panel again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, work: _Work) -> Tensor:
        ctx.work = work
        ctx.save_for_backward(x, weight)
        out: Tensor | None = None
        least = -(-len(weight) // BLOCKS)
        block: list[_Panel] = []
        with unseen(), as_given(x.device):
            for panel in work.panels:
                block.append(panel)
                first, size = block[0].first, panel.first + panel.size - block[0].first
                if size < least and panel is not work.panels[-1]:
                    continue
                held = torch.empty_like(weight[:size])
                for p in block:
                    rows = weight.narrow(0, p.first, p.size)
                    held.narrow(0, p.first - first, p.size).copy_(work.held(rows, p.first))
                part = x.narrow(-1, first, size) @ held
                out = part if out is None else out.add_(part)
                del held  # before there is the next one
                block = []
        assert out is not None
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        work: _Work = ctx.work
        x, weight = ctx.saved_tensors
        need_x, need_w, _ = ctx.needs_input_grad
        if torch.is_grad_enabled():  # a gradient of the gradient: as a whole, which autograd can follow
            wanted = [t for t, need in ((x, need_x), (weight, need_w)) if need]
            found = list(torch.autograd.grad(x @ work.held(weight, 0), wanted, grad, create_graph=True))
            return found.pop(0) if need_x else None, found.pop(0) if need_w else None, None
        dx = torch.empty_like(x) if need_x else None
        dw = torch.empty_like(weight) if need_w else None
        for panel in work.finer:
            rows = weight.narrow(0, panel.first, panel.size).detach().requires_grad_(need_w)
            with torch.enable_grad():
                held = work.held(rows, panel.first)
            with as_given(x.device):
                if dx is not None:
                    dx.narrow(-1, panel.first, panel.size).copy_(grad @ held.detach().T)
                if dw is not None:
                    taken = x.narrow(-1, panel.first, panel.size)
                    pull = taken.reshape(-1, panel.size).T @ grad.reshape(-1, grad.shape[-1])
                    dw.narrow(0, panel.first, panel.size).copy_(torch.autograd.grad(held, rows, pull)[0])
        return dx, dw, None


def _run(x: Tensor | None, weight: Tensor, work: _Work) -> Tensor:
    along = work.contract and not _has_rows_of_features(work.draw.contraction)
    y: Tensor = (_AlongInputs if along else _InPanels).apply(x, weight, work)  # type: ignore[no-untyped-call]
    return y


def _work(devices: Sequence[Device], weight: Tensor, draw: Draw, contract: bool) -> _Work | None:
    """The way of a weight through devices in panels; None: it goes as a whole, being small, or because a device, a
    compiler or a transform looks at all of it.
    """
    cells: list[Any] = list(devices)
    if (
        weight.numel() < LARGE
        or not all(map(_in_rows, devices))
        or (contract and not (_has_rows_of_features(draw.contraction) or _has_rows_of_inputs(draw.contraction, weight)))
        or (draw.contraction.transposed and draw.contraction.groups > 1 and any(d.by_channel for d in cells))
        or (not _tells_features_apart(draw.contraction) and any(d.by_part for d in cells))
        or torch.compiler.is_compiling()
        or not only_looked_at()
        or forward_ad._current_level >= 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    ):
        return None
    panels, finer = (_panels(draw.contraction, weight, sum(d.takes[i] for d in cells)) for i in (0, 1))
    known: list[Any] = []
    with torch.no_grad(), unseen():
        for k, device in enumerate(cells):
            before = _Work(cells[:k], draw, list(known), panels, finer, contract, weight.dtype)

            def parts(before: _Work = before) -> Iterator[tuple[Tensor, Draw]]:
                for p in panels:
                    rows = weight.detach().narrow(0, p.first, p.size)
                    yield before.held(rows, p.first), replace(draw, first=p.first)

            known.append(device.measure(parts))
    return _Work(cells, draw, known, panels, finer, contract, as_autocast(weight[:0]).dtype)


def rows_of_panel(weight: Tensor, takes: int) -> int:
    """How many rows a panel of a weight has, for each element of which so many values come up."""
    size = max(LEAST, min(MOST, weight.numel() // (SHARE * takes)))
    return max(1, size * len(weight) // weight.numel())


def level_of_rows(level: Tensor, first: int, count: int) -> Tensor:
    """A level of noise for some rows of a weight, where it differs from row to row."""
    return level if level.dim() < 2 or level.shape[1] == 1 else level.narrow(1, first, count)


def largest_of_all(parts: Parts, over: str) -> Tensor | None:
    """max|W| over all parts of a weight: of the ``"layer"``, 0-d, or of each output ``"channel"``, beside any rows;
    None where rows are of different channels, so that each part tells its own."""
    found: Tensor | None = None
    for part, draw in parts():
        if over == "channel" and _tells_features_apart(draw.contraction):
            return None
        here = draw.largest(part, over)
        found = here if found is None else torch.maximum(found, here)
    return found


def _holders(devices: Sequence[Device]) -> list[Device]:
    return [d for d in devices if type(d).weight is not Device.weight]


def _has_rows_of_features(contraction: Contraction) -> bool:
    """Whether a row of the weight is what makes an output feature."""
    return not contraction.transposed and contraction.layout is None


def _has_rows_of_inputs(contraction: Contraction, weight: Tensor) -> bool:
    """Whether a row of the weight is what an input is multiplied with, in a type in which parts can be added up."""
    layout = contraction.layout
    if layout is None or layout.order != (1, 0) or layout.features != 1 or contraction.geometry is not None:
        return False
    return weight.dtype.itemsize >= 4 and as_autocast(weight[:0]).dtype == weight.dtype


def _tells_features_apart(contraction: Contraction) -> bool:
    """Whether rows of the weight differ in their output features, however it is stored."""
    layout = contraction.layout
    if layout is None:
        return not contraction.transposed
    return layout.order.index(0) < layout.groups + layout.features


def held_by(devices: Sequence[Device], weight: Tensor, draw: Draw) -> Tensor:
    """The whole weight as the devices of a list hold it: panel by panel, but for those that look at all of it."""
    together: list[list[Device]] = []
    for device in _holders(devices):
        if together and _in_rows(device) and _in_rows(together[-1][-1]):
            together[-1].append(device)
        else:
            together.append([device])
    for some in together:
        work = _work(some, weight, draw, contract=False)
        if work is not None:
            weight = _run(None, weight, work)
            continue
        for device in some:
            weight = device.weight(weight, draw)
    return weight


def _in_rows(device: Device) -> bool:
    """Whether a device holds any rows of a weight as it holds the whole."""
    return type(device).weight is Cells.weight


def through_cells(devices: Sequence[Device], x: Tensor, weight: Tensor, draw: Draw) -> Tensor | None:
    """The contraction of x (rows, ...) with the weight as the devices of a list hold it, panel by panel; None where the
    whole weight is to be held."""
    holders = _holders(devices)
    work = _work(holders, weight, draw, contract=True) if holders else None
    return None if work is None else _run(x, weight, work)
