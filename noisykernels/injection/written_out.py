"""Attention that a model writes out, where details are asked for: it has the names, and so the noise, of torch's own.

Which products and softmaxes are parts of one, `descent` has found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from noisykernels.injection.attending import Attending
from noisykernels.injection.site import PARTS, kind_of, part_of

__all__ = ["Role", "WrittenOut"]


class Role(NamedTuple):
    """What a product or a softmax is to an attention.

    Args:
        part: ``"scores"``, ``"softmax"`` or ``"weighted_sum"``.
        path: of the innermost module that has all parts.
        first: the call that gives the scores, by which attentions are told from each other.
    """

    part: str
    path: str
    first: str


class WrittenOut(Attending):
    """The part of `mode.SiteMode` that names what attention is made of."""

    last: Any
    calls: dict[str, int]
    called: dict[str, int]  # by module and kind, parts or not
    numbers: dict[str, int]  # of the attentions that have begun, by the call that gives the scores
    roles: Mapping[str, Role]  # by module, kind and number of the call

    def part_at(self, kind: str) -> str | None:
        """The name of a call that begins now as a part of an attention; None: it is none."""
        stem = f"{self.modules[-1][0]}:{kind}"
        number = self.called.get(stem, 0)
        self.called[stem] = number + 1
        role = self.roles.get(f"{stem}#{number}")
        if role is None:
            return None
        if role.part == "scores":
            number = self.numbers[role.first] = self.calls.get(f"{role.path}:attention", 0)
            for part in (*PARTS, "softmax", "attention"):
                self.calls[f"{role.path}:{part}"] = number + 1
            self.arrays.append(f"{role.path}:attention#{number}")  # by which both products are meant
        elif role.first not in self.numbers:  # it goes another way than the trace did
            return None
        return f"{role.path}:{role.part}#{self.numbers[role.first]}"

    def softmax(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        """A softmax, which is a site if values are summed with it."""
        value: Tensor = func(*args, **kwargs)
        name = None if self.muted else self.part_at("softmax")
        if name is None:
            return value
        self.last = noisy = self.at(name, self.noise_at(name), value)
        return noisy if (out := kwargs.get("out")) is None else out.copy_(noisy)

    def attention(self, name: str, value: Any, out: Tensor | None) -> Any:
        """The result of an operation of this name, which is that of a whole attention, if it is its weighted sum."""
        if kind_of(name) != "weighted_sum":
            return value
        whole = part_of(name, "attention")
        noisy = self.at(whole, self.noise_at(whole), value)
        return noisy if out is None or noisy is value else out.copy_(noisy)
