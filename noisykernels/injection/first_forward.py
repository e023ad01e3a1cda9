"""What the first forward of an injected model has come upon, held against what was asked for: by then all sites have
names, and modes know their arrays."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from noisykernels._util.warning import warn_user
from noisykernels.hardware.device import Device
from noisykernels.injection.descent import Descent, roles_of
from noisykernels.injection.doors import paths_of
from noisykernels.injection.kinds import LOOKUPS, PREPARING
from noisykernels.injection.lookups import acts_on_entries
from noisykernels.injection.met import (
    check_met,
    warn_of_idle,
    warn_of_parameters,
    warn_of_results,
    warn_of_unmet,
    warn_of_values,
)
from noisykernels.injection.mode import SiteMode
from noisykernels.injection.placement import Placement
from noisykernels.injection.site import PARTS, kind_of, part_of, path_of
from noisykernels.injection.state import NoiseState, state_of
from noisykernels.nn.modules import NoisyLayer

__all__ = ["check_asked", "check_first", "warn_of_written_out"]


def warn_of_written_out(descent: Descent) -> None:
    """Tells of what looks like attention that a model writes out, of which only a trace can be sure."""
    if found := [name for name, role in roles_of(descent, descent.products).items() if role.part != "softmax"]:
        warn_user(
            f"inject: detail='attention': {', '.join(map(repr, found))} may be products of attentions that the model "
            "writes out, which are found with example_input=... only: they keep their names"
        )


def check_first(model: nn.Module, state: NoiseState, mode: SiteMode) -> None:
    """After the first forward in which noise is on: what was asked for has met a site, and values that take noise."""
    if not state.placement.on(model):
        return
    names = [*dict.fromkeys(mode.names()) | state.met_in_parts]
    if state.traced:
        warn_of_unmet(state.placement, names, mode.arrays)
    else:
        check_asked(model, state.placement, names, mode)
    warn_of_values(mode.valueless)
    state.unchecked = False


def check_asked(model: nn.Module, placement: Placement, names: Sequence[str], mode: SiteMode) -> None:
    """Refuses words and functions that met nothing in a forward, of which these are the sites, and tells of parameters
    that hardware did not meet."""
    modules = dict(paths_of(model, root=state_of(model).root))
    own = {n for n in names if placement.layers_own and isinstance(modules.get(path_of(n)), NoisyLayer)}
    placed, sites = [], set(names)  # at which there is hardware
    for name in dict.fromkeys((*names, *mode.arrays)):
        if name not in own and (module := modules.get(path_of(name))) is not None:
            if name in sites:
                placement.at(name, module)
            if name in mode.arrays and placement.hardware_at(name, module):
                placed.append(name)
    check_met(placement, names, mode.arrays, own.__contains__)
    warn_of_results(mode.closed)
    idle = {name for name in placed if not _acts(placement.hardware_at(name, modules[path_of(name)]) or (), name, mode)}
    warn_of_idle(placement, placed, idle)
    if mode.chip.parameters is not None:
        large = [name for name, p in model.named_parameters() if p.dim() > 1]
        read = {name: parameters for name, parameters in mode.chip.read.items() if name not in idle}
        warn_of_parameters(placement, large, read, placed)


def _acts(devices: Sequence[Device], name: str, mode: SiteMode) -> bool:
    """Whether any of the devices placed at a contraction acts there."""
    if kind_of(name) in LOOKUPS:
        return any(acts_on_entries(d, "bag" in kind_of(name)) for d in devices)
    parts = [name, *(part_of(name, part) for part in PARTS if kind_of(name) == "attention")]
    of_values = kind_of(name) in (*PREPARING, *PARTS, "attention") and not any(part in mode.chip.of for part in parts)
    return not of_values or not all(d.of_array for d in devices)
