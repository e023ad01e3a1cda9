"""One pass of a model over data in which the value at every site is seen: what the measures share.

Knows nothing of what is measured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from noisykernels._util.data import Data, batches, needed
from noisykernels._util.inputs import Call, Inputs
from noisykernels._util.keeping import keeping_state
from noisykernels._util.runtime import evaluating, place_of, unwrap
from noisykernels.injection.api import inject
from noisykernels.injection.doors import parameters_of
from noisykernels.injection.mode import SiteMode
from noisykernels.injection.rows import apart, together
from noisykernels.injection.running import begin, instead, result_of
from noisykernels.injection.setting import noise_state
from noisykernels.injection.state import is_injected, state_of, tell_idle
from noisykernels.injection.values import Change
from noisykernels.nn.modules import NoisyLayer
from noisykernels.noise.arguments import seed_tensor
from noisykernels.noise.description import Noise

__all__ = ["Seen", "watch"]


class Seen(NamedTuple):
    """A site as the model passes it; values have their rows along dimension 0."""

    site: str
    clean: Tensor  # (B, *item)
    noisy: Tensor  # (B, *item)
    noise: Noise | Change | None  # a Noise with all factors of its levels
    repeats: int  # of the noise, averaged


Look = Callable[[Seen], None]
Backward = Callable[[Tensor, Tensor], None]


class _Watching(SiteMode):
    """Shows each site's value; with gradients, passes a copy on, since an operation in place may follow."""

    look: Look | None
    gradients: bool

    def at(self, name: str, noise: Noise | Change | None, clean: Tensor, row_dim: int | None = None) -> Tensor:
        self.record = None  # which is there only to have every site come here
        noisy = super().at(name, noise, clean, row_dim)
        self.record = []
        if not clean.is_floating_point():
            return clean
        if self.gradients and not noisy.requires_grad:
            noisy = noisy.detach().requires_grad_()
        rows = self.rows_at(name, row_dim)
        first = None if rows is None or rows.outer == 0 else apart(clean, rows, self.key.batch)
        if self.look is not None and rows is not None and first is not None:
            repeats, both = 1, apart(noisy, rows, self.key.batch)
            assert both is not None
            if isinstance(noise, Noise):
                noise, repeats = self._levels(name, noise, first.numel() // max(1, self.key.batch), first.dim())
            self.look(Seen(name, first, both, noise, repeats))
            noisy = together(both, rows, noisy)
        return noisy.clone() if self.gradients else noisy

    def resumed(self) -> SiteMode:
        make = _watching(None, self.gradients)
        return self.as_far_as_this(make(self.placement, self.key, self.modules[0][1], self.ids, self.places))


def _watching(look: Look | None, gradients: bool) -> Callable[..., SiteMode]:
    def make(*args: Any) -> SiteMode:
        mode = _Watching(*args)
        mode.look, mode.gradients, mode.record, mode.tracing = look, gradients, [], False
        return mode

    return make


def _example(call: Call, model: nn.Module, inputs: Inputs) -> Any:
    """What the model itself is given for some inputs: all by name, where a forward of the user's gives some so."""
    if call.forward is None:
        return inputs.given
    found: list[Any] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append({**dict(zip(parameters_of(model), args, strict=False)), **kwargs} if kwargs else args)

    hook = model.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with evaluating(model), torch.no_grad():
            call.forward(model, inputs.given)
    finally:
        hook.remove()
    return found[0] if found else None


def _draws(module: nn.Module) -> bool:
    return is_injected(module) and state_of(module).draws_noise


def watch(
    call: Call,
    model: nn.Module,
    data: Data,
    look: Look,
    *,
    seed: int | Tensor | None,
    level: Any,
    batch_size: int,
    backward: Backward | None = None,
) -> None:
    """Runs a model in evaluation mode over data and shows each site's value. The model is left as it was.

    Args:
        call: how the model is called; its op is the function that asks, for errors.
        model: injected, with noisy layers, or without noise.
        data: in any form.
        look: called at each site that has rows.
        seed, level: of the noise, see `noise_state`.
        batch_size: rows of a batch, where `data` are tensors.
        backward: called with the outputs and labels of each batch; gradients are then on.
    """
    target, done, name = unwrap(model), 0, call.op
    place = place_of(target)
    tell_idle(name, target, seed=seed, level=level)
    if seed is None and any(isinstance(m, NoisyLayer) or _draws(m) for m in target.modules()):
        seed = seed_tensor(name, None, place)  # before random numbers are kept, so that the next call has another one
    make, calls = _watching(look, backward is not None), 0

    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        mode, args, kwargs = begin(target, state_of(target), args, kwargs, make=make)
        with mode:
            out = result_of(mode, target, args, kwargs)
        mode.tell_left_out()
        return out

    with contextlib.ExitStack() as stack:
        stack.enter_context(keeping_state(target))
        dim = state_of(target).placement.input_dim if is_injected(target) else 0
        for inputs, labels in batches(name, data, batch_size, dim, call.takes(target)):
            if len(inputs) == 0:
                continue
            inputs = inputs.to(place)
            if done == 0:
                call.check(target, inputs)
                if not is_injected(target):
                    with call.explaining(target, inputs):
                        injected = inject(target, None, example_input=_example(call, target, inputs[:1]))
                    stack.enter_context(injected)
                stack.enter_context(evaluating(target))
                stack.enter_context(torch.set_grad_enabled(backward is not None))
            with noise_state(target, seed=seed, rows=torch.arange(done, done + len(inputs)), level=level):
                before = calls
                with instead(target, run):
                    out = call(target, inputs)
                if calls == before:
                    raise ValueError(
                        f"{name}: forward must call the model that it is given, got a function that does not"
                    )
                if backward is not None:
                    backward(out, needed(name, data, labels).to(place))
            done += len(inputs)
    if done == 0:
        raise ValueError(f"{name}: data must hold at least one row, got none")
