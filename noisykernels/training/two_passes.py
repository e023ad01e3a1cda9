"""Optimizers that take two passes over the same batch for a step, around any of torch's optimizers.

The first gradient says where the loss nearby is largest, and the base optimizer steps from the weights with the
gradient of that place; where that is, a subclass says by its scales. Knows nothing of noise but that layers without a
seed of their own draw one from torch's generators.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.optimizer import Optimizer, ParamsT

from noisykernels._util.checks import flag, in_range, shown

__all__ = ["SharpnessAware"]


TINY = 1e-16  # added to the norm of the gradient, as in the authors' code


class SharpnessAware(Optimizer):
    """What `SAM`, `ASAM` and `SAMSON` have in common; they differ in `_scale`, the T of their formulas.

    The base optimizer's groups, state and defaults are also this optimizer's: there is one learning rate for a
    scheduler to change and one state to store.
    """

    base_optimizer: Optimizer
    _spent: tuple[tuple[Tensor, Tensor, int], ...] = ()  # gradients of both passes, and their versions

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        settings: dict[str, Any],
        model: nn.Module | None,
        same_noise: bool,
        options: dict[str, Any],
    ) -> None:
        name = type(self).__name__
        if not (isinstance(base_optimizer, type) and issubclass(base_optimizer, Optimizer)):
            kind = base_optimizer if isinstance(base_optimizer, type) else type(base_optimizer)
            raise TypeError(
                f"{name}: base_optimizer must be an optimizer's class, with its arguments after it, got "
                f"{'the class' if kind is base_optimizer else 'an object of class'} {kind.__name__}"
            )
        if not (model is None or isinstance(model, nn.Module)):
            raise TypeError(f"{name}: model must be a torch.nn.Module or None, got {type(model).__name__}")
        if inspect.signature(base_optimizer.step).parameters["closure"].default is inspect.Parameter.empty:
            raise ValueError(
                f"{name}: base_optimizer must step from one gradient, and {base_optimizer.__name__} evaluates a "
                "closure of its own; use it alone, or another optimizer here"
            )
        self.settings, self.model, self.same_noise = settings, model, flag(name, "same_noise", same_noise)
        self._originals: list[tuple[Tensor, Tensor]] | None = None  # weights and their copies, at the ascent point
        self._ready = False  # both passes are done
        super().__init__(_parameters(name, params), dict(settings))
        if "lr" in options and not isinstance(options["lr"], Tensor):
            in_range(name, "lr", options["lr"])
        try:
            self.base_optimizer = base_optimizer(self.param_groups, **options)
        except (TypeError, ValueError, AttributeError) as error:  # in words of its own
            given = ", ".join(f"{option}={shown(value)}" for option, value in options.items())
            text = f"{name}: options must be those of {base_optimizer.__name__}, got {given}"
            raise (TypeError if isinstance(error, TypeError) else ValueError)(text) from error
        if clash := settings.keys() & self.base_optimizer.defaults.keys():
            raise ValueError(f"{name}: {base_optimizer.__name__} has settings of the same name: {', '.join(clash)}")
        self.base_optimizer.defaults.update(settings)
        self._share()

    def _share(self) -> None:
        base = self.base_optimizer
        self.defaults, self.param_groups, self.state = base.defaults, base.param_groups, base.state

    def _scale(self, name: str, weight: Tensor, group: dict[str, Any]) -> Tensor | None:
        """T of a parameter; None is 1."""
        raise NotImplementedError

    @torch.no_grad()
    def ascend(self) -> None:
        """Moves the weights by epsilon, and sets the gradients to None for the second pass.

        Where the gradient is not finite, nothing moves. Epsilon does not depend on the gradient's scale: a loss
        scaler's factor needs no removal here, and clipping the first gradient changes nothing.

        Raises:
            RuntimeError: the weights are at the ascent point already, or a gradient is sparse.
        """
        if self._originals is not None:
            raise RuntimeError("ascend: the weights are at the ascent point already; restore() them first")
        parts: list[tuple[Tensor, Tensor, Tensor | None, float]] = []
        for group in self.param_groups:
            names = group.get("param_names", [""] * len(group["params"]))
            for name, p in zip(names, group["params"], strict=True):
                if p.grad is None or p.numel() == 0:
                    continue
                if p.grad.is_sparse:
                    raise RuntimeError(
                        f"ascend: the gradient of {name or 'a parameter'} is sparse, expected a dense one"
                    )
                g = p.grad.to(torch.promote_types(p.grad.dtype, torch.float32))
                scale = self._scale(name, p.to(g.dtype), group)
                rho = -group["rho"] if group.get("maximize") else group["rho"]  # to where the objective is worst
                parts.append((p, g if scale is None else scale * g, scale, rho))
        self._originals, self._ready = [(p, p.clone()) for p, _, _, _ in parts], False
        self.zero_grad()
        if parts:
            norms = [torch.linalg.vector_norm(scaled) for _, scaled, _, _ in parts]
            norm = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
            for p, scaled, scale, rho in parts:
                here = norm.to(p.device)
                epsilon = scaled * (rho / (here + TINY))
                if scale is not None:
                    epsilon *= scale
                p.add_(torch.where(here.isfinite(), epsilon, 0.0))  # without waiting for a device
        torch.clear_autocast_cache()  # which holds copies of the weights

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the weights back, to the bit.

        Raises:
            RuntimeError: the weights are not at the ascent point.
        """
        if self._originals is None:
            raise RuntimeError("restore: the weights are not at the ascent point; ascend() first")
        for p, original in self._originals:
            p.copy_(original)
        torch.clear_autocast_cache()
        self._originals, self._ready = None, True

    def passes(self) -> Iterator[int]:
        """The two passes of a step, as a loop whose body runs forward and backward on the same data both times.

        Yields 0 at the weights, then 1 at the ascent point. Around the second go what `same_noise` and `model`
        say, after it the weights are back, and `step()` takes the step. What the body draws from torch's
        generators it draws twice the same way with `same_noise`, so the data is chosen before.

        Raises:
            RuntimeError: the body has added to gradients that were there before, which the second pass would lack.
        """
        for p, gradient, version in self._spent:  # which nobody has added to since
            if p.grad is gradient and gradient._version == version:
                p.grad = None
        with self._noise_again(), _Carried(self.param_groups) as carried:
            yield 0
        if carried:
            raise RuntimeError(
                f"{type(self).__name__}: gradients from before the first pass would be lost, since both passes take "
                "all of a step's gradients: clear them first, and where batches are accumulated run all of them in "
                "each pass, `for _ in optimizer.passes(): for batch in batches: ...`, or in the closure"
            )
        self.ascend()
        try:
            with _held_statistics(self.model):
                yield 1
        finally:
            self.restore()
            self._take_note()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the base optimizer with the gradient of the ascent point.

        Args:
            closure: clears the gradients, computes the loss of all of the step's data, its gradients, and returns
                it; runs twice. None: both passes were run before, by `passes`, or by `ascend` and `restore`.

        Returns:
            The loss of the first pass, which is that of the weights themselves; None without a closure.

        Raises:
            RuntimeError: no closure, and no two passes either; or gradients that were accumulated before.
        """
        loss = None
        if closure is not None:
            for number in self.passes():
                with torch.enable_grad():
                    value = closure()
                loss = value if number == 0 else loss
        if not self._ready:
            raise RuntimeError("step: run both passes first, `for _ in optimizer.passes(): ...`, or give a closure")
        self._ready = False
        self.base_optimizer.step()
        self._take_note()
        return loss

    def _take_note(self) -> None:
        """Both passes have had their gradients: the next step's do not begin with them."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        self._spent = tuple((p, p.grad, p.grad._version) for p in parameters)

    def _noise_again(self) -> contextlib.AbstractContextManager[None]:
        """After it the generators stand where they stood before."""
        places = {p.device for group in self.param_groups for p in group["params"] if p.device.type != "cpu"}
        kind = next(iter(places)).type if places else None
        return torch.random.fork_rng(places, enabled=self.same_noise, device_type=kind)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As for any optimizer; a group may have its own rho, eta and p."""
        for name in self.settings:
            self._check(name, param_group.get(name, self.settings[name]))
        super().add_param_group(param_group)

    def _check(self, name: str, value: Any) -> None:
        in_range(type(self).__name__, name, value)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's, whose groups hold rho, eta and p too."""
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Also that of a base optimizer alone; the settings are then those given here."""
        self.base_optimizer.load_state_dict(state_dict)
        self._share()
        for group in self.param_groups:
            for name, value in self.settings.items():
                group.setdefault(name, value)

    def __getstate__(self) -> dict[str, Any]:
        names = ("base_optimizer", "settings", "model", "same_noise", "_originals", "_ready")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in names}}


def _parameters(op: str, params: Any) -> list[Any]:
    """What an optimizer is to change: parameters, each with its name or without, or groups of them.

    Raises:
        TypeError: anything else.
        ValueError: nothing.
    """

    def is_one(p: Any) -> bool:
        named = isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], str) and isinstance(p[1], Tensor)
        return named or isinstance(p, Tensor | dict)

    several = isinstance(params, Iterable) and not isinstance(params, Tensor | str | bytes | dict)
    found = list(params) if several else []
    if not several or not all(map(is_one, found)):
        raise TypeError(f"{op}: params must be parameters, named or not, or groups of them, got {shown(params)}")
    if not found:
        raise ValueError(f"{op}: params must hold at least one parameter, got none")
    return found


class _Carried:
    """Whether a pass adds to gradients that were there before it; true of one that does."""

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        self.parameters = [p for g in groups for p in g["params"] if p.grad is not None and p.requires_grad]
        self.added: list[Tensor] = []

    def __enter__(self) -> _Carried:
        self.hooks = [p.register_hook(functools.partial(self._look, p)) for p in self.parameters]
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _look(self, parameter: Tensor, gradient: Tensor) -> None:
        """Before a gradient is added: the first time, what is there is from before, unless it was cleared."""
        place = next((i for i, p in enumerate(self.parameters) if p is parameter), None)
        if place is not None:
            del self.parameters[place]
            if (before := parameter.grad) is not None:
                values = before.detach().coalesce().values() if before.is_sparse else before.detach()
                self.added.append((values != 0).any())  # a device is not waited for

    def __bool__(self) -> bool:
        return any(map(bool, self.added))


@contextlib.contextmanager
def _held_statistics(model: nn.Module | None) -> Iterator[None]:
    """Batch norms in training mode go on normalising with the batch, and record nothing."""
    modules = () if model is None else model.modules()
    held = [m for m in modules if isinstance(m, _BatchNorm) and m.track_running_stats]
    for module in held:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in held:
            module.track_running_stats = True
