"""Groups: several sites that are noisy together, as one place of a walk with a tolerance of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import nn

from noisykernels._engine.arguments import chosen_sites, listed
from noisykernels._util.checks import shown
from noisykernels._util.runtime import unwrap
from noisykernels.injection.site import PARTS, Site, path_of

__all__ = ["Groups", "check_groups", "grouped", "words_of"]

Groups = Literal["all", "block"] | Mapping[str, Sequence[str | int | type] | str | type] | None


def check_groups(op: str, groups: Groups, sites: object) -> None:
    """Refuses what are no groups, before any work.

    Raises:
        TypeError, ValueError: naming what came.
    """
    if groups is None or groups in ("all", "block"):
        return
    expected = '"all", "block", or a dict of names and their sites'
    if not isinstance(groups, Mapping) or not all(isinstance(name, str) and name for name in groups):
        raise TypeError(f"{op}: groups must be {expected}, got {shown(groups)}")
    if not groups:
        raise ValueError(f"{op}: groups must be {expected}, got an empty dict")
    if sites is not None:
        raise ValueError(f"{op}: a dict of groups says which sites are walked; leave out sites=")


def words_of(sites: Sequence[str | int | type] | str | type | None, groups: Groups) -> list[str | type]:
    """All words that choose sites, or members of groups."""
    inside = groups.values() if isinstance(groups, Mapping) else ()
    return [word for words in (sites, *inside) for word in listed(words) if isinstance(word, str | type)]


def grouped(op: str, model: nn.Module, sites: list[Site], groups: Groups, root: str) -> list[Site]:
    """The places of a walk, made of the sites that it chose.

    Raises:
        ValueError: a name that is a site's, words that meet no site.
    """
    if groups is None:
        return sites
    if isinstance(groups, Mapping):
        known = {site.name for site in sites}
        if taken := [name for name in groups if name in known]:
            raise ValueError(f"{op}: a group must have a name of its own, got that of the site {taken[0]!r}")
        found = {name: chosen_sites(op, model, sites, words, root=root) for name, words in groups.items()}
    elif groups == "all":
        found = {"all": sites}
    else:
        blocks, found = _blocks(unwrap(model)), {}
        for site in sites:
            found.setdefault(_block_of(site, blocks), []).append(site)
    return [_one(name, index, members) for index, (name, members) in enumerate(found.items())]


def _one(name: str, index: int, members: list[Site]) -> Site:
    """Some sites as one; of what a site is, a group has the names and the calls."""
    names = tuple(site.name for site in members)
    own = [site.calls or ((site.name,) if site.kind in PARTS else ()) for site in members]
    calls = tuple(dict.fromkeys(call for of_site in own for call in of_site))
    return Site(name, index, -1, "group", (), None, calls, members=names)


def _blocks(model: nn.Module) -> set[str]:
    """Paths of what the outermost lists and sequences of modules hold; of no list within a block."""
    found: set[str] = set()
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and not any(_within(path, block) for block in found):
            found |= {f"{path}.{name}".lstrip(".") for name, _ in module.named_children()}
    return found


def _within(path: str, block: str) -> bool:
    return path == block or path.startswith(block + ".")


def _block_of(site: Site, blocks: set[str]) -> str:
    """The block in which a site lies, else the part of the model that holds it, else the site."""
    path = path_of(site.name)
    found = next((block for block in blocks if _within(path, block)), path.partition(".")[0])
    return found or site.name
