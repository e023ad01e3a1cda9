"""How far rounding can move a model's scores: what engines that compute the same real numbers may differ by.

A contraction of K terms x_k w_k, summed in any order in arithmetic of unit roundoff u, is off by at most
K u sum|x_k w_k| and, its roundings being as good as independent of mean zero, with a standard deviation of at most
about sqrt(K) u ||x w|| (a partial sum is at most about ||x w||, and there are K of them; Higham and Mary, SIAM J. Sci.
Comput. 41, 2019). Multiplying each x_k by (1 + eta e_k), e_k standard normal, moves the sum by eta ||x w||. So a run of
the model in which the result of every site is multiplied by such factors, with eta = sqrt(K) u, scatters its scores as
the roundings of one engine do in the least favourable order of summation, carried through whatever follows:
cancellations, norms and all. Values of a half type are summed in float32 and rounded once: there eta is its u, if that
is larger; likewise that of tf32, which rounds what goes in. At a site with noise, what is added to the value is rounded
as well: a part eta e of the mean size of their sum.

Factors are `WIDER` times as large: an operation that jumps (a code of a converter, a comparison) is then seen to jump
wherever rounding could make it. What is seen to move, at most in a few runs, is taken `FACTOR` times: for the
difference of two engines (sqrt 2), for what an engine rounds beside the contraction (a norm folded into the weights, a
direction added to a value: some roundings of the same terms; a convolution in Winograd's form, whose sums over channels
scatter 4.8 times as far as the direct one, 8.2 times at the worst of 16 places: `_graph/winograd.py`), and because the
largest of a few normal numbers may be a small one. The roundings of the scores themselves, u times the largest of the
row, come on top.

Both are powers of two, chosen before anything was measured: a difference of WIDER * FACTOR / sqrt(2) = 45 standard
deviations of the model above (7 of Winograd's form at its worst place) is no rounding. Measured since
(`tests/engine/test_verification.py` holds it): sound models stay below 0.2 of the bound, as blocked sums are better
than the least favourable order; planted faults, such as a level that is off by 2 %, lie beyond 50 times the bound.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from noisykernels._engine.session import Session
from noisykernels._graph.in_place import memory_of
from noisykernels._util.inputs import Inputs
from noisykernels._util.runtime import gpu_precision
from noisykernels.injection.doors import original
from noisykernels.injection.eagerly import eagerly
from noisykernels.injection.kinds import in_place
from noisykernels.injection.mode import SiteMode
from noisykernels.injection.placement import SILENT, Placement
from noisykernels.injection.running import begin
from noisykernels.noise.functional import eps

__all__ = ["Rounding", "difference", "rows_of", "slices", "tied"]

WIDER = 8  # times the factors of the model of roundings
FACTOR = 8  # times what the scores are seen to move
KEPT = 1 << 20  # bytes of factors that are not drawn anew: where values are small, drawing them is what takes long
TF32 = 2.0**-11  # its unit roundoff
AT_ONCE = 1 << 18  # scores that are compared at once
TIED = 5  # rows from which it is told how near scores are tied, at most


class _Shaken(SiteMode):
    """Runs a forward with its noise, in which the result of every site is multiplied by factors close to 1."""

    def __init__(self, factors: _Factors, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.factors = factors

    def site(self, kind: str, func: Any, args: Any, kwargs: dict[str, Any], row_dim: int | None = None) -> Any:
        """See `SiteMode`."""
        out = super().site(kind, func, args, kwargs, row_dim)
        if in_place(func, args, kwargs):  # whoever shares the memory sees the same
            return out.mul_(self.factors.like(out))
        given = {_memory(a) for a in (*args, *kwargs.values()) if isinstance(a, Tensor)}

        def moved(t: Any) -> Any:  # but for what only looks at what was given
            return self._shaken(t) if isinstance(t, Tensor) and _memory(t) not in given else t

        return moved(out) if isinstance(out, Tensor) else pytree.tree_map(moved, out)

    def _site(self, name: str, *args: Any, **kwargs: Any) -> Any:
        out = super()._site(name, *args, **kwargs)
        return out if self.noise_at(name) is None else pytree.tree_map_only(Tensor, self._summed, out)

    def _summed(self, value: Tensor) -> Tensor:
        """A value and its noise may cancel: their sum is rounded as either of them is large."""
        if not value.is_floating_point():
            return value
        return value.add_((self.factors.like(value) - 1) * value.abs().mean())

    def drawn(self, op: Callable[..., Tensor], kind: str, noise: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """See `SiteMode`."""
        return self._shaken(super().drawn(op, kind, noise, x, *args, **kwargs))

    def _shaken(self, value: Tensor) -> Tensor:
        return value * self.factors.like(value) if value.is_floating_point() else value


class _Factors:
    """Factors close to 1, others for each value: our own normals, which transforms such as vmap do not forbid."""

    def __init__(self, size: float) -> None:
        self.size = size
        self.seed = self.values = 0
        self.kept: dict[tuple[Any, ...], Tensor] = {}  # of the runs before: at every site they are the same
        self.room = KEPT  # bytes that are left for these

    def begin(self, run: int) -> None:
        """A run begins, which has a number."""
        self.seed, self.values = 2**63 + run, 0

    def like(self, value: Tensor) -> Tensor:
        """One for each element of a value."""
        self.values += 1
        key = self.seed, self.values, value.shape, value.dtype, value.device
        found = self.kept.get(key)
        if found is None:
            found = self._drawn(value)
            if found.nbytes <= self.room:
                self.room -= found.nbytes
                self.kept[key] = found
        return found

    def _drawn(self, value: Tensor) -> Tensor:
        drawn = eps((1, value.numel()), seed=self.seed, site=self.values, device=value.device).view(value.shape)
        precise = torch.promote_types(value.dtype, torch.float32)
        return (1 + self.size * drawn.to(precise)).to(value.dtype)


def _memory(t: Tensor) -> int:
    try:
        return memory_of(t)
    except NotImplementedError:  # within a transform values are made of others
        return id(t)


class Rounding:
    """What rounding makes of the scores of a session's model.

    Args:
        session: with the model.
        values: of a forward, which tell in what types it computes.
        wider: how much larger the factors are than those of the model above.
    """

    def __init__(self, session: Session, values: Sequence[Any], wider: int = WIDER) -> None:
        self.session = session
        kinds = {t.dtype for t in values if isinstance(t, Tensor) and t.is_floating_point()} or {torch.float32}
        self.unit = max(torch.finfo(kind).eps for kind in kinds) / 2
        terms = max((p.numel() // len(p) for p in session.model.parameters() if p.dim() > 1 and len(p)), default=1)
        summed = torch.finfo(torch.float64 if kinds == {torch.float64} else torch.float32).eps / 2
        coarse = TF32 if session.problem.device.type == "cuda" and "tf32" in gpu_precision() else 0.0
        self.factors = _Factors(wider * max(self.unit, math.sqrt(terms) * summed, coarse))

    def bound(
        self, placement: Placement, plain: Tensor, data: tuple[Inputs, Tensor], draws: Sequence[int],
        runs: Sequence[int],
    ) -> Tensor:  # fmt: skip
        """How far another engine's scores may be from the plain one's, for each row and score: [rows, scores].

        Args:
            placement: under which they are.
            plain: [draws, rows, scores], finite or not.
            data: inputs and ids of the rows.
            draws: ids.
            runs: numbers of the runs with factors; the more, the more certain.
        """
        inputs, rows = data
        moved = torch.zeros_like(plain[0], dtype=torch.float64)
        for run in runs:
            with self.session.placing(placement):
                together = [[draw] for draw in draws] if self.session.runs_draws_apart else [draws]
                shaken = torch.cat([self._run(inputs, rows, some, run) for some in together])
            shaken = shaken.unflatten(0, (len(draws), len(rows)))
            for some in slices(plain):
                apart = difference(shaken[..., some], plain[..., some]).amax(0)
                apart = torch.nan_to_num(apart, nan=math.inf)  # at the end of the range, anything
                moved[:, some] = torch.maximum(moved[:, some], apart)
        size = _size(plain.abs().amax(0), moved > 0).double()
        return moved.add_(self.unit * size.unsqueeze(-1)).mul_(FACTOR)

    def _run(self, inputs: Inputs, rows: Tensor, draws: Sequence[int], run: int) -> Tensor:
        """Scores of a forward with factors: [draws x rows, scores]."""
        model, state = self.session.model, self.session.state
        self.factors.begin(run)
        make = functools.partial(_Shaken, self.factors)
        inputs = inputs.each(lambda t: t * self.factors.like(t) if t.is_floating_point() else t)
        with self.session.drawing(rows, draws):
            mode, args, kwargs = begin(model, state, *inputs.arguments, make=make)
            with eagerly(), mode:
                return rows_of(self.session.problem.call.picked(original(model)(*args, **kwargs)))


def rows_of(scores: Tensor) -> Tensor:
    """Scores of any shape, as many for each row as there are: [rows, scores]."""
    return scores.reshape(len(scores), -1)


def slices(scores: Tensor) -> Iterator[slice]:
    """Of the scores [..., scores] of rows, so many at once that looking at them takes little memory beside them."""
    step = max(1, AT_ONCE * scores.shape[-1] // max(1, scores.numel()))
    yield from (slice(low, low + step) for low in range(0, scores.shape[-1], step))


def difference(a: Tensor, b: Tensor) -> Tensor:
    """Of scores, as float64; 0 where both are the same, infinite ones too."""
    return (a.double() - b.double()).abs().masked_fill_(a == b, 0.0)


def _size(scores: Tensor, moves: Tensor) -> Tensor:
    """The largest of a row's absolute scores [rows, scores] that rounding moves: not that of a class masked by a
    large constant, beside which all others would be nothing; where none moves, the largest finite one."""
    finite = scores.masked_fill(~scores.isfinite(), 0.0)
    return torch.where(moves.any(1), finite.masked_fill(~moves, 0.0).amax(1), finite.amax(1))


@torch.inference_mode()
def tied(session: Session) -> float | None:
    """The share of rows whose best score without noise leads by no more than rounding moves it, so that rounding alone
    decides what they count; None where it is not the best score that counts.

    Of both scores, by the model above: the bound without what makes it safe.
    """
    if session.leads is None:
        return None
    count = min(TIED, max(1, session.passes.rows * session.passes.draws // 2))  # factors take memory as well
    inputs, _, rows = session.problem.first(count)
    scores = session.scores(inputs)
    rounding = Rounding(session, [*inputs.tensors, scores], wider=1)
    bound = rounding.bound(SILENT, rows_of(scores).unsqueeze(0), (inputs, rows), (0,), range(2))
    return float((session.leads <= 2 * float(bound.amax(1).median()) / FACTOR).mean())
