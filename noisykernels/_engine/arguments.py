"""What a study is given, checked: each error names the argument, what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noisykernels._util.checks import in_range, is_number, shown
from noisykernels._util.runtime import unwrap
from noisykernels._util.warning import warn_user
from noisykernels.injection.shards import in_group, is_tensor_parallel
from noisykernels.injection.site import Site, meets, near
from noisykernels.injection.trace import names_of
from noisykernels.noise.arguments import ids_tensor
from noisykernels.noise.shards import is_dtensor

__all__ = ["check_processes", "chosen_sites", "draw_list", "level_list", "listed", "with_rows"]


def check_processes(op: str, model: Any) -> None:
    """Refuses a model of which other processes hold a part, and warns where not only the first does a study.

    Raises:
        ValueError: a tensor-parallel model, or one with parameters that are gathered.
    """
    if not in_group():
        return
    if isinstance(model, nn.Module) and (is_tensor_parallel(model, ()) or any(map(is_dtensor, model.parameters()))):
        raise ValueError(
            f"{op}: model must be whole in this process, got one whose parameters are DTensors: load its full state "
            "(torch.distributed.checkpoint.state_dict) into a model that is not shared out"
        )
    if (rank := torch.distributed.get_rank()) > 0:  # the first may be the only one that runs a study
        warn_user(
            f"{op}: process {rank} of torch.distributed does the whole study by itself, to the result that process 0 "
            "comes to: run it where the rank is 0, with compute=Compute(executor=...) to share it out"
        )


def level_list(op: str, levels: Sequence[float] | Tensor) -> list[float]:
    wrong = f"{op}: levels must be a list of numbers, got {shown(levels)}"
    try:
        values = torch.as_tensor(levels, dtype=torch.float64).tolist()
    except (OverflowError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(wrong) from error
    if not isinstance(values, list) or not all(isinstance(v, float) for v in values):
        raise ValueError(wrong)
    if not values or not all(math.isfinite(v) and v >= 0 for v in values):
        raise ValueError(f"{op}: levels must be finite, not negative, and at least one, got {values}")
    if len(set(values)) != len(values):
        raise ValueError(f"{op}: levels must differ from each other, got {values}")
    return values


def draw_list(op: str, draws: Any) -> list[int]:
    if is_number(draws):
        return list(range(in_range(op, "draws", draws)))
    ids: Tensor | None
    try:
        ids = torch.as_tensor(draws, dtype=None if len(draws) else torch.int64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{op}: draws must be a number of draws or a list of ids, got {shown(draws)}") from error
    ids = ids_tensor(op, "draws", ids, torch.device("cpu"))
    assert ids is not None
    if len(ids) == 0 or len(ids.unique()) != len(ids):
        raise ValueError(f"{op}: draws must be at least one, or ids that differ, got {shown(draws)}")
    return ids.tolist()


def listed(sites: Sequence[str | int | type] | str | type | None) -> list[str | int | type]:
    """What `sites` chooses, one by one; none: all."""
    if sites is None:
        return []
    return [sites] if isinstance(sites, str | type) or is_number(sites) else list(sites)  # type: ignore[list-item]


def chosen_sites(
    op: str, model: nn.Module, known: list[Site], sites: Sequence[str | int | type] | str | type | None,
    opens: Callable[[Site], bool] = lambda _: True, root: str = "",
) -> list[Site]:  # fmt: skip
    """The sites of a model that a user's names, patterns and indices choose among those that are open."""
    every, names = [site for site in known if opens(site)], names_of(unwrap(model), known, root)
    if sites is None:
        return every
    wanted = listed(sites)

    def fits(site: Site, choice: str | int | type) -> bool:
        if isinstance(choice, str | type):
            return meets(site.name, names.meant(choice))
        return site.index == choice

    if not wanted:
        raise ValueError(f"{op}: sites must choose at least one site, got an empty list: None means all sites")
    for choice in wanted:
        if not any(fits(site, choice) for site in every):
            choice = choice.__name__ if isinstance(choice, type) else choice
            close = ", ".join(near(str(choice), [s.name for s in every]))
            have = ", ".join(f"{s.index} {s.name}" for s in every)
            raise ValueError(f"{op}: no site {choice!r}; {close and f'near it are {close}; '}the model has {have}")
    return [site for site in every if any(fits(site, choice) for choice in wanted)]


def with_rows(op: str, chosen: list[Site], asked: Any, told: Collection[str] = ()) -> list[Site]:
    """The sites that noise can enter at, with those in `told`; others are left out with a warning, or are an error if
    they were asked for."""
    lost = [site.name for site in chosen if site.row_dim is None and not site.alone and site.name not in told]
    if not lost:
        return chosen
    if asked is not None or len(lost) == len(chosen):
        raise RuntimeError(
            f"{op}: rows cannot be told apart at {', '.join(map(repr, lost))}, so no noise can enter there; "
            "choose other sites with sites="
        )
    warn_user(f"{op}: rows cannot be told apart at {', '.join(map(repr, lost))}: left out")
    return [site for site in chosen if site.name not in lost]
