"""The weights that one chip holds, as a state dict: written down where a forward's devices make them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from noisykernels._util.arguments import check_arguments
from noisykernels._util.keeping import keeping_state
from noisykernels._util.runtime import evaluating, unwrap
from noisykernels.hardware.contraction import Contraction
from noisykernels.hardware.device import Arithmetic, Device, Draw
from noisykernels.hardware.macs import MacNoise
from noisykernels.injection.api import inject
from noisykernels.injection.columns import Wider
from noisykernels.injection.mode import SiteMode
from noisykernels.injection.running import begin, called, result_of
from noisykernels.injection.setting import noise_state
from noisykernels.injection.state import is_injected, state_of, tell_idle
from noisykernels.injection.trace import checked_example

__all__ = ["programmed"]


class _Held:
    """A model's state as a chip holds it: copies of its memories, into which weights are written as they lie there."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state
        self.memories: dict[tuple[int, torch.dtype], Tensor] = {}
        self.holders: dict[tuple[int, torch.dtype], Tensor] = {}  # of each cell, the call that has written it
        self.calls: list[str] = []
        # The last weight that holds a column: what it is made of, and how what is held instead is parted.
        self.parted: tuple[Tensor, tuple[Tensor, ...], Callable[[Tensor], tuple[Tensor, ...]]] | None = None
        for tensor in state.values():
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided and tensor.numel():
                key = _memory_of(tensor)
                if key not in self.memories:
                    self.memories[key] = _whole(tensor).clone()
                    self.holders[key] = torch.zeros_like(self.memories[key], dtype=torch.int32)

    def write(self, call: str, weight: Tensor, held: Tensor) -> None:
        """Puts what a call's array holds in the place of its weight, and of the bias where that is a column of it."""
        if self.parted is not None and weight is self.parted[0]:
            _, parts, parted = self.parted
            for what, part, of_part in zip(("weight", "bias"), parts, parted(held), strict=True):
                self._write(call, what, part, of_part)
        else:
            self._write(call, "weight", weight, held)

    def _write(self, call: str, what: str, weight: Tensor, held: Tensor) -> None:
        key = _memory_of(weight)
        lies = weight.shape, weight.stride(), weight.storage_offset()
        if key not in self.memories or type(weight) not in (Tensor, nn.Parameter):
            raise ValueError(
                f"programmed: the {what} at {call!r} is no parameter or buffer of the model's state, but "
                "computed: no state dict can hold what the chip holds instead"
            )
        place, holder = (table[key].as_strided(*lies) for table in (self.memories, self.holders))
        others = (holder > 0) & ~((place == held) | (place.isnan() & held.isnan()))
        if bool(others.any()):
            name = next(n for n, t in self.state.items() if isinstance(t, Tensor) and _memory_of(t) == key)
            other = self.calls[int(holder[others].flatten()[0]) - 1]
            raise ValueError(
                f"programmed: {name!r} is held by two arrays in different values, at {other!r} and at {call!r}: "
                "no state dict can hold both; arrays='parameter' of inject() makes them one"
            )
        self.calls.append(call)
        place.copy_(held)
        holder.fill_(len(self.calls))

    def as_state(self) -> dict[str, Any]:
        """The state, with what is held in place of the weights."""
        found = dict(self.state)
        for name, t in self.state.items():
            if isinstance(t, Tensor) and t.layout is torch.strided and t.numel():
                found[name] = self.memories[_memory_of(t)].as_strided(t.shape, t.stride(), t.storage_offset()).clone()
            elif isinstance(t, Tensor):
                found[name] = t.clone()
        return found


def _memory_of(tensor: Tensor) -> tuple[int, torch.dtype]:
    return tensor.untyped_storage().data_ptr(), tensor.dtype


def _whole(tensor: Tensor) -> Tensor:
    """The memory of a tensor, all of it."""
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())


class _Before(Device):
    """Looks at a weight before it comes to the devices of a list."""

    of_array = True
    seen: Tensor

    def weight(self, weight: Tensor, draw: Draw) -> Tensor:
        """The weight, unchanged."""
        self.seen = weight
        return weight


class _After(Device):
    """Writes down what the devices of a list hold instead of a weight."""

    of_array = True

    def __init__(self, call: str, before: _Before, chip: _Held) -> None:
        self.call, self.before, self.chip = call, before, chip

    def weight(self, weight: Tensor, draw: Draw) -> Tensor:
        """The weight, unchanged."""
        self.chip.write(self.call, self.before.seen, weight)
        return weight


class _AfterOutputs(_After):
    """The same behind a device that acts on outputs, too."""

    def output(self, y: Tensor, draw: Draw) -> Tensor:
        """The sums, unchanged."""
        return y


class _Programming(SiteMode):
    """Writes down the weights of all arrays that a forward meets.

    A weight with the column of its bias is made of both without a sum, so what is held instead of each is what the
    derivative of that gives back.
    """

    written: _Held

    def with_column(self, contraction: Contraction, x: Tensor, weight: Tensor, bias: Tensor) -> Wider:
        """See `Contracting`."""
        parts = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        with torch.enable_grad():
            made = super().with_column(contraction, x, *parts)
        both, held = made.weight, made.weight.detach()
        self.written.parted = held, (weight, bias), lambda found: torch.autograd.grad(both, parts, found)
        return made._replace(x=made.x.detach(), weight=held)

    def on_devices(self, name: str, kind: str, hardware: Sequence[Device], *args: Any, **kwargs: Any) -> Any:
        """See `Contracting`."""
        holding = [i for i, d in enumerate(hardware) if type(d).weight is not Device.weight]
        if holding:
            devices, last = list(hardware), holding[-1] + 1
            behind = any(
                type(d).output is not Device.output and not isinstance(d, Arithmetic | MacNoise) for d in devices[:last]
            )
            before = _Before()
            devices.insert(last, (_AfterOutputs if behind else _After)(name, before, self.written))
            hardware = [before, *devices]
        return super().on_devices(name, kind, hardware, *args, **kwargs)


def programmed(model: nn.Module, example_input: Any, *, seed: int, draw: int = 0) -> dict[str, Any]:
    """The weights that one chip holds, as a state dict of the clean model.

    The clean model with this state computes what the injected one does under ``noise_state(seed=seed, draws=[draw])``,
    up to roundings, if its devices act on weights alone and nothing else enters; a bias in the array
    (``bias="column"``) is as it is held there. Of devices that act on more, such as
    converters, the state has what they do to weights. Levels are those of `inject`; hardware that switches leave out in
    one mode counts.

    Args:
        model: injected, or with noisy layers; it is run in evaluation mode without gradients, and left as it was.
        example_input: an input as for `inject`: the arrays are those that the model meets on it. Weights that it does
            not meet, and all that is in no array, are as they are.
        seed: of the noise.
        draw: the chip.

    Returns:
        A dict of copies, with the keys of ``model.state_dict()``.

    Raises:
        ValueError: the example has no row; or a weight is held by two arrays in different values (``arrays="call"``,
            tied weights of several modules), or is computed from parameters; so of a bias that is in its array.

    Example:
        >>> from noisykernels.hardware import WeightNoise
        >>> from noisykernels.injection import inject, noise_state
        >>> model, x = nn.Linear(3, 2), torch.ones(1, 3)
        >>> with inject(model, None, hardware=[WeightNoise(add=0.1)]), noise_state(model, seed=1, draws=[4]):
        ...     y, chip = model(x), programmed(model, x, seed=1, draw=4)
        >>> _ = model.load_state_dict(chip)
        >>> torch.allclose(model(x), y)
        True
    """
    check_arguments(programmed, locals())
    example, target = checked_example("programmed", example_input), unwrap(model)
    tell_idle("programmed", target, seed=seed)
    if not is_injected(target):
        with inject(target, None):
            return programmed(target, example_input, seed=seed, draw=draw)
    state = state_of(target)
    written = _Held(target.state_dict())

    def make(*given: Any) -> SiteMode:
        mode = _Programming(*given)
        mode.written, mode.always = written, True
        return mode

    def run(*args: Any, **kwargs: Any) -> Any:
        mode, args, kwargs = begin(target, state, args, kwargs, None, make)
        with mode:
            return result_of(mode, target, args, kwargs)

    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, example)  # a model may write into them
    with (
        keeping_state(target, forwards=True),
        noise_state(target, seed=seed, draws=[draw]),
        evaluating(target),
        torch.inference_mode(False),
        torch.no_grad(),
    ):
        called(target, run, args, kwargs)
    return written.as_state()
