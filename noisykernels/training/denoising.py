"""Small trainable blocks that take out noise behind chosen sites of a frozen network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import whole
from noisykernels._util.runtime import unwrap
from noisykernels.injection.api import sites
from noisykernels.injection.met import no_site
from noisykernels.injection.site import Names, Site, meets, path_of, picked
from noisykernels.injection.state import is_injected, state_of
from noisykernels.injection.trace import names_of
from noisykernels.nn.signals import draw_standard, enter_module, leave_module
from noisykernels.training.gradients import SiteGradient

__all__ = ["DenoisingBlock", "denoising_sites", "insert_denoising"]


ATTRIBUTE = "denoising"  # name of a block within the module that it follows
_CHANNELS_FIRST = ("conv", "batch_norm", "group_norm", "instance_norm", "local_response_norm")


class DenoisingBlock(nn.Module):
    r"""Predicts mean and variance of a value's noise through a bottleneck, and takes a sample of it away.

    .. math::
        h = \operatorname{relu}(W_1 y + b_1), \quad (r, s) = W_2 h + b_2, \quad
        \mu = c \odot y + r, \quad \sigma = \operatorname{softplus}(s), \qquad y' = y - (\mu + \sigma\,\epsilon)

    with a factor *c* for each feature: noise has as many dimensions as the value and does not fit through a bottleneck,
    but the signal may, so the value can be made smaller, feature by feature, and the signal be put back through *r*.
    In training mode :math:`\epsilon` is standard Gaussian, drawn under the seed, draw and rows of the model's
    `noise_state`, without its level; in evaluation mode it is 0. At first *c* and *r* are 0 and :math:`\sigma` is 0.02:
    the block does hardly anything. Its own operations are no sites, and without noise.

    Args:
        features: size of the feature dimension, C.
        bottleneck: size of *h* along it; None is an eighth of C, at least 1.
        dims: 0 for features along the last dimension, and a linear :math:`W_1`; 1, 2 or 3 for channels along dimension
            1 before that many dimensions of space, and a convolution.
        kernel_size: of the convolution :math:`W_1`, odd; :math:`W_2` is one of size 1.

    Raises:
        ValueError: a size out of range.

    Source: own design, after the description of the probabilistic denoising block in Efficient Noise Mitigation (arXiv
    2409.18553), whose equations are not public; there it samples at inference too.

    Example:
        >>> block = DenoisingBlock(6, 2, dims=2)
        >>> block(torch.ones(5, 6, 8, 8)).shape, sum(p.numel() for p in block.parameters())
        (torch.Size([5, 6, 8, 8]), 152)
    """

    noiseless = True  # read by the mode of an injected model, also of a block that is part of the model

    def __init__(self, features: int, bottleneck: int | None = None, *, dims: int = 0, kernel_size: int = 3) -> None:
        check_arguments(DenoisingBlock.__init__, locals(), dims=whole(0, 3))
        super().__init__()
        inner = max(1, features // 8) if bottleneck is None else bottleneck
        if kernel_size % 2 == 0:
            raise ValueError(f"DenoisingBlock: kernel_size must be odd, got {kernel_size}")
        self.features, self.dims, self.padding = features, dims, kernel_size // 2
        self.name = "denoising"  # of its random numbers
        self.weight_in = nn.Parameter(torch.empty(inner, features, *[kernel_size] * dims))
        self.bias_in = nn.Parameter(torch.zeros(inner))
        self.weight_out = nn.Parameter(torch.zeros(2 * features, inner, *[1] * dims))
        self.bias_out = nn.Parameter(torch.zeros(2 * features))
        nn.init.kaiming_uniform_(self.weight_in, nonlinearity="relu")
        self.shrinkage = nn.Parameter(torch.zeros(features, *[1] * dims))
        with torch.no_grad():
            self.bias_out[features:] = -4.0

    def forward(self, y: Tensor) -> Tensor:
        """The value with less noise; (B, ..., C), or (B, C, *space)."""
        contract: Any = (F.linear, F.conv1d, F.conv2d, F.conv3d)[self.dims]
        same = {"padding": self.padding} if self.dims else {}
        hidden = F.relu(contract(y, self.weight_in, self.bias_in, **same))
        rest, deviation = contract(hidden, self.weight_out, self.bias_out).chunk(2, 1 if self.dims else -1)
        noise = self.shrinkage * y + rest
        if self.training:
            noise = noise + F.softplus(deviation) * draw_standard(noise, self.name)
        cleaned: Tensor = y - noise.to(y.dtype)
        return cleaned

    def extra_repr(self) -> str:
        """Its arguments."""
        return f"{self.features}, {len(self.bias_in)}, dims={self.dims}, kernel_size={2 * self.padding + 1}"


class insert_denoising:
    """Freezes a model and puts trainable blocks behind chosen sites, in place; as a context manager, for some lines.

    Each block acts on the value that leaves a site's module, with the noise in it, whether the model is injected before
    or afterwards. All parameters but the blocks' stop requiring gradients, and all modules but the blocks run in
    evaluation mode, also after `model.train()`: batch norms and dropout are as in the deployed network, and noise
    enters where it does in evaluation. The blocks' parameters are parameters of the model, so that any optimizer,
    `train(...)` and state dicts find them, as ``<module>.denoising.*``.

    Args:
        model: any model, injected or not, not yet wrapped by DistributedDataParallel.
        where: which sites: a name pattern or a list of them, as for `inject`; or a dict from patterns to modules of
            your own, which get a site's value and return one of the same shape; their operations are no sites either.
        example_input: as for `inject`.
        bottleneck, kernel_size: see `DenoisingBlock`.

    Attributes:
        blocks: dict from site names to blocks.
        share: parameters of the blocks / parameters of the model before.

    Raises:
        ValueError: a pattern that matches no site; a site that is not the only one of a module, since blocks follow
            modules; a module that has a block already; a model wrapped by DistributedDataParallel.

    Source: see `DenoisingBlock`.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> with insert_denoising(model, "0", example_input=torch.ones(1, 8)) as inserted:
        ...     trainable = [name for name, p in model.named_parameters() if p.requires_grad]
        >>> trainable[0], list(inserted.blocks), round(inserted.share, 2)
        ('0.denoising.weight_in', ['0:linear#0'], 0.75)
        >>> any("denoising" in name for name, _ in model.named_parameters())
        False
    """

    def __init__(
        self,
        model: nn.Module,
        where: str | Sequence[str] | dict[str, nn.Module] | dict[str, nn.Module | None],
        *,
        example_input: Any,
        bottleneck: int | None = None,
        kernel_size: int = 3,
    ) -> None:
        check_arguments(insert_denoising.__init__, locals())
        if isinstance(model, nn.parallel.DistributedDataParallel):
            raise ValueError(
                "insert_denoising: model is wrapped by DistributedDataParallel, which would not average the gradients "
                "of new parameters: insert the blocks first, then wrap it"
            )
        self.model = target = unwrap(model)
        known = sites(target, example_input)
        hosts: dict[str, nn.Module] = {}
        blocks: dict[str, nn.Module] = {}
        like = next((p for p in target.parameters() if p.is_floating_point()), torch.empty(0))
        for site, own in _chosen(names_of(target, known), known, where):
            host = _host(target, [s.name for s in known], site.name)
            if isinstance(host, str) or site.row_dim != 0:
                reason = host if isinstance(host, str) else "its rows are not along dimension 0"
                raise ValueError(f"insert_denoising: no block can follow site {site.name!r}: {reason}")
            block = _block(site.kind, site.shape[1:], bottleneck, kernel_size) if own is None else own
            if isinstance(block, DenoisingBlock):
                block.name = f"{site.name}:{ATTRIBUTE}"
            hosts[site.name], blocks[site.name] = host, block.to(like).train(target.training)
        if not blocks:
            raise ValueError("insert_denoising: where must choose at least one site, got none")
        self.blocks, self._hosts = blocks, hosts
        self.share = _count(blocks.values()) / max(1, _count([target]))
        self._before = [(p, p.requires_grad) for p in target.parameters()]
        self._modes = [(m, m.training) for m in target.modules()]
        self._handles = [m.register_forward_pre_hook(_evaluate) for m, _ in self._modes]
        target.requires_grad_(False)
        for name, host in hosts.items():
            host.add_module(ATTRIBUTE, blocks[name])
            self._handles.append(host.register_forward_hook(_follow))
        _look_again(target)

    def remove(self) -> nn.Module:
        """Takes the blocks out and returns the model as it was, modes and all; done already, it does nothing."""
        for handle in self._handles:
            handle.remove()
        for host in self._hosts.values():
            delattr(host, ATTRIBUTE)
        for parameter, needed in self._before:
            parameter.requires_grad_(needed)
        for module, training in self._modes:
            module.training = training
        self._handles, self._before, self._modes, self._hosts = [], [], [], {}
        _look_again(self.model)
        return self.model

    def __enter__(self) -> insert_denoising:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def _look_again(model: nn.Module) -> None:
    """An injected model is told that its layers have changed."""
    if is_injected(model):
        state_of(model).look(model)


def _evaluate(module: nn.Module, args: Any) -> None:
    """Forward pre-hook of a frozen module."""
    module.training = False


class _Noiseless(nn.Module):
    """What surrounds a block, for the mode of an injected model."""

    noiseless = True


_NOISELESS = _Noiseless()


def _follow(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook of a module with a block."""
    block: Any = getattr(module, ATTRIBUTE)
    enter_module(ATTRIBUTE, _NOISELESS)
    try:
        return (block(output[0]), *output[1:]) if isinstance(output, tuple) else block(output)
    finally:
        leave_module(ATTRIBUTE)


def _count(modules: Iterable[nn.Module]) -> int:
    return sum(p.numel() for m in modules for p in m.parameters())


def _chosen(names: Names, known: list[Site], where: Any) -> list[tuple[Site, nn.Module | None]]:
    """The sites that the patterns choose, each with a module given for it; the first match counts."""
    given = where if isinstance(where, dict) else dict.fromkeys([where] if isinstance(where, str) else where)
    for pattern, module in given.items():
        if not isinstance(pattern, str) or not (module is None or isinstance(module, nn.Module)):
            raise TypeError(
                f"insert_denoising: where must be name patterns, or a dict from them to modules, got {where!r}"
            )
        fit = [site.name for site in known if meets(site.name, names.meant(pattern))]
        if not fit:
            raise ValueError(no_site("insert_denoising", names.meant(pattern), names.sites))
        if module is not None and len(fit) > 1:
            raise ValueError(f"insert_denoising: one module for several sites: {pattern!r} matches {', '.join(fit)}")
    table, nothing = names.table(given), object()
    chosen = ((site, picked(table.items(), site.name, nothing)) for site in known)
    return [(site, module) for site, module in chosen if module is not nothing]


def _host(model: nn.Module, names: list[str], name: str) -> nn.Module | str:
    """The module whose result is the value at a site, or why there is none."""
    path = path_of(name)
    if not path:
        return "it is no call of a submodule"
    others = [n for n in names if n != name and f"{path_of(n)}.".startswith(f"{path}.")]
    if others:
        return f"module {path!r} has other sites too: {', '.join(others)}"
    host = model.get_submodule(path)
    return f"module {path!r} has a block already" if hasattr(host, ATTRIBUTE) else host


def _block(kind: str, item: tuple[int, ...], bottleneck: int | None, kernel_size: int) -> DenoisingBlock:
    """A block for the value at a site, of which `item` is the shape of one row."""
    rank = len(item)
    spatial = kind.startswith(_CHANNELS_FIRST) or "pool" in kind or rank > 2  # else (length, features)
    dims = rank - 1 if spatial and rank > 1 else 0
    return DenoisingBlock(
        (item[0] if dims else item[-1]) if item else 1, bottleneck, dims=dims, kernel_size=kernel_size
    )


def denoising_sites(
    model: nn.Module,
    gradients: Sequence[SiteGradient],
    *,
    budget: float,
    bottleneck: int | None = None,
    kernel_size: int = 3,
) -> list[str]:
    """Chooses sites for blocks: those with the largest gradients that fit in a budget of parameters, one by one.

    Args:
        model: the model that the gradients are of.
        gradients: what `gradient_norms` found.
        budget: parameters of all blocks / parameters of the model, at most.
        bottleneck, kernel_size: of the blocks, see `DenoisingBlock`.

    Returns:
        Names of sites in execution order, for `insert_denoising`. Sites that no block can follow are left out.

    Raises:
        ValueError: a budget that is negative or not finite.

    Source: Efficient Noise Mitigation (arXiv 2409.18553) for the criterion; that the choice is greedy is our own.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> norms = nk.training.gradient_norms(model, (torch.randn(50, 8), torch.zeros(50).long()))
        >>> denoising_sites(model, norms, budget=0.02, bottleneck=1)  # 14 of 706 parameters
        ['2:linear#0']
    """
    check_arguments(denoising_sites, locals())
    target = unwrap(model)
    if not (math.isfinite(budget) and budget >= 0):
        raise ValueError(f"denoising_sites: budget must be finite and not negative, got {budget}")
    left, names, chosen = budget * _count([target]), [g.site for g in gradients], []
    for one in sorted(gradients, key=lambda g: -g.norm):
        if isinstance(_host(target, names, one.site), str):
            continue
        with torch.device("meta"):
            size = _count([_block(one.kind, one.shape, bottleneck, kernel_size)])
        if size <= left:
            left -= size
            chosen.append(one.site)
    return sorted(chosen, key=names.index)
