"""Sites, the places of a forward pass at which noise can enter: what they are called and which are meant.

A site is one call of an operation. Its name, and so its noise, depends on nothing but the module that calls and how
often that module has called the same operation before.

A module may be called anything (`a*`, `l[1]`, `input`, `x:relu#0`). A name is taken apart from its end, since neither
kinds nor numbers hold a colon or a hash; the inputs are the names without a colon. Names are met exactly; a pattern is
only what a user has written and what is no name of the model. A module's path, or its type, means everything in it.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "CACHE",
    "CACHED",
    "PARTS",
    "Choice",
    "Names",
    "Site",
    "closeness",
    "closest",
    "exactly",
    "is_input",
    "kind_of",
    "meets",
    "near",
    "part_of",
    "path_of",
    "picked",
    "whole_of",
]


@dataclass(frozen=True)
class Site:
    """One site of a model: `name` is `module.path:kind#k`, or `input`; `index` counts in order.

    `row_dim` is the dimension that counts rows; None: there is no such dimension, the value is the same for all rows
    (`alone`) or mixes them. `outer` is what lies outside of rows where several values of each are folded into that
    dimension: outer x rows x more. `calls` are the names of all calls that use the array of which this is the first
    call; empty for a later one, and where there is no weight. `members` are the names of the sites that a walk makes
    noisy together under one name; empty: it is one site.
    """

    name: str
    index: int
    id: int
    kind: str
    shape: tuple[int, ...]
    row_dim: int | None
    calls: tuple[str, ...] = ()
    outer: int = 1
    alone: bool = False
    members: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of all sites that are noisy together: its own, where it is one."""
        return self.members or (self.name,)


def is_input(name: str) -> bool:
    """Whether a site is an argument of the model: `input`, or `input#1` and so on.

    Example:
        >>> [is_input(name) for name in ("input", "input#1", "input:linear#0", "input#1:linear#0")]
        [True, True, False, False]
    """
    return ":" not in name


def kind_of(name: str) -> str:
    """Kind of the operation at a site.

    Example:
        >>> kind_of("block.conv1:conv2d#0"), kind_of("x:relu#0:linear#1")
        ('conv2d', 'linear')
    """
    return "input" if is_input(name) else name.rpartition(":")[2].rpartition("#")[0]


def path_of(name: str) -> str:
    """Path of the module that calls the operation at a site; empty for the inputs, and where the model itself does.

    Example:
        >>> path_of("x:relu#0:linear#1"), path_of("input")
        ('x:relu#0', '')
    """
    return name.rpartition(":")[0]


CACHE = "cache"  # what is in front of the kinds of what is cached: `cache:key#3`, of layer 3
CACHED = tuple(f"{CACHE}:{cross}{kind}" for kind in ("key", "value") for cross in ("", "cross_"))
PARTS = ("scores", "weighted_sum")  # attention's own products


def part_of(name: str, part: str) -> str:
    """The name of a product of the attention with this name.

    Example:
        >>> part_of("block:attention#2", "scores")
        'block:scores#2'
    """
    stem, _, number = name.rpartition("#")
    return f"{stem.rpartition(':')[0]}:{part}#{number}"


def whole_of(name: str) -> str | None:
    """The name of the attention of which a name is that of a product; None: of none.

    Example:
        >>> whole_of("block:scores#2"), whole_of("block:matmul#2")
        ('block:attention#2', None)
    """
    return part_of(name, "attention") if kind_of(name) in PARTS else None


def _stem_of(name: str) -> str:
    """A site's name without the number of the call."""
    head, _, number = name.rpartition("#")
    return head if head and number.isdecimal() else name


@dataclass(frozen=True)
class Choice:
    """Sites that are meant: that of a name, those of a name without number, those of all modules in a block that is
    named by its path or by its type, or all that a pattern fits."""

    word: str | type  # as the user gave it
    form: Literal["name", "stem", "path", "type", "pattern"]
    inside: Mapping[str, int] = field(
        default_factory=dict, compare=False, repr=False
    )  # of a block: how deep modules lie

    @property
    def text(self) -> str:
        """The word as messages say it."""
        return self.word if isinstance(self.word, str) else self.word.__name__


FORMS = ("name", "stem", "path", "type", "pattern")  # of two that are equally close, an earlier one counts
_FAR = 2**31  # beyond all blocks


def exactly(name: str) -> Choice:
    """The one site of this name."""
    return Choice(name, "name")


def closeness(name: str, choice: Choice) -> int | None:
    """How exactly a choice means the site of this name, 0 for the most exactly; None: not at all.

    Example:
        >>> block = Choice("a", "path", {"a": 0, "a.b": 1})
        >>> [closeness("a.b:relu#0", c) for c in (exactly("a.b:relu#0"), block, exactly("a:relu#0"))]
        [0, 3, None]
    """
    if choice.form == "name":
        return 0 if name == choice.word else None
    stem, path = _stem_of(name), path_of(name)
    if choice.form == "stem":
        return 1 if stem == choice.word else None
    if kind_of(name) == "module":  # only of a block that was itself asked for
        if choice.form == "pattern":
            return _FAR if ":module" in choice.text and (_fits(name, choice.text) or _fits(stem, choice.text)) else None
        return 2 if choice.inside.get(path) == 0 else None
    if choice.form != "pattern":
        depth = None if is_input(name) else choice.inside.get(path)
        return None if depth is None else 2 + depth
    return _FAR if _fits(name, choice.text) or _fits(stem, choice.text) or _fits(path, choice.text) else None


def _fits(text: str, pattern: str) -> bool:
    return bool(text) and fnmatch.fnmatchcase(text, pattern)


# As torch.compiler.assume_constant_result does it, which would import the whole compiler.
_fits._dynamo_marked_constant = True  # type: ignore[attr-defined]


def meets(name: str, choice: Choice) -> bool:
    """Whether the site of this name is one that a choice means.

    Example:
        >>> block = Choice("a*", "path", {"a*": 0})
        >>> [meets("a*:relu#0", c) for c in (exactly("a*:relu#0"), block, Choice("a[*]", "pattern"))]
        [True, True, True]
        >>> meets("ab:relu#0", block)
        False
    """
    return closeness(name, choice) is not None


def closest(choices: Iterable[Choice], name: str) -> Choice | None:
    """The choice that means a site most exactly, of several the first; None: none does."""
    best, found = None, None
    for choice in choices:
        how = closeness(name, choice)
        if how is not None and (best is None or how < best):
            best, found = how, choice
    return found


def picked(table: Iterable[tuple[Choice, Any]], name: str, otherwise: Any, whole: str | None = None) -> Any:
    """Of a table's pairs, the value of the choice that means a site most exactly, of several the first; or `whole`, of
    which the site is a part."""
    best, value = None, otherwise
    for choice, given in table:
        for one in (name, whole):
            how = None if one is None else closeness(one, choice)
            if how is not None and (best is None or how < best):
                best, value = how, given
    return value


class Names:
    """What a model's sites and modules are called: whatever is one of these names is no pattern.

    Args:
        sites: names of sites.
        modules: all paths of each module, the one that its sites are named by first; none: the paths of the sites.

    Example:
        >>> Names(["a*:relu#0", "ab:relu#0"]).meant("a*").form, Names(["ab:relu#0"]).meant("a*").form
        ('path', 'pattern')
        >>> sorted(Names(["a.b:relu#0", "ab:relu#0"]).meant("a").inside)
        ['a.b']
    """

    def __init__(self, sites: Iterable[str], modules: Iterable[tuple[str, Any]] = ()) -> None:
        self.sites, self.modules = list(sites), dict(modules)
        self._names, self._stems = set(self.sites), {_stem_of(n) for n in self.sites}
        self._paths = dict.fromkeys(filter(None, map(path_of, self.sites)))
        self._own: dict[int, str] = {}  # the path by which the sites of a module are named
        for path, module in self.modules.items():
            self._own.setdefault(id(module), path)

    def meant(self, word: str | type) -> Choice:
        """What a user's word means."""
        if isinstance(word, type):
            return Choice(word, "type", self._of_type(word))
        if word in self._names:
            return Choice(word, "name")
        if word in self._stems:
            return Choice(word, "stem")
        if word and (inside := self._within(word)):
            return Choice(word, "path", inside)
        # The number of a call that has not been seen: names are known as far as a model can be looked at.
        return Choice(word, "name" if _stem_of(word) != word and _stem_of(word) in self._stems else "pattern")

    def table(self, given: dict[Any, Any]) -> dict[Choice, Any]:
        """A user's dict by what its words mean, in the order in which they count: names before patterns."""
        meant = {self.meant(key.word if isinstance(key, Choice) else key): value for key, value in given.items()}
        return dict(sorted(meant.items(), key=lambda item: FORMS.index(item[0].form)))

    def unmet(self, choice: Choice) -> bool:
        """Whether a choice means no site."""
        return not any(meets(name, choice) for name in self.sites)

    def _within(self, path: str) -> dict[str, int]:
        """The modules in a block, and how deep they lie; shared ones are in it wherever their name puts them."""
        if path in self.modules:
            block = self.modules[path].named_modules()
            return {self._own[id(m)]: _depth(below) for below, m in block if id(m) in self._own}
        start = path + "."
        return {p: _depth(p[len(start) :]) for p in self._paths if p == path or p.startswith(start)}

    def _of_type(self, wanted: type) -> dict[str, int]:
        """The modules in all blocks of a type; in one within another, how deep they lie in the inner one."""
        found: dict[str, int] = {}
        for path, module in self.modules.items():
            if isinstance(module, wanted):
                for inner, depth in self._within(path).items():
                    found[inner] = min(depth, found.get(inner, depth))
        return found


def _depth(path: str) -> int:
    return path.count(".") + 1 if path else 0


def near(word: str, known: Sequence[str]) -> list[str]:
    """Of known names, those that a user may have meant.

    Example:
        >>> near("fc3", ["input", "fc1:linear#0", "fc2:linear#0", "conv:conv2d#0"])
        ['fc1:linear#0', 'fc2:linear#0']
    """
    by_part: dict[str, list[str]] = {}
    for name in known:
        for part in {name, _stem_of(name), path_of(name)} - {""}:
            by_part.setdefault(part, []).append(name)
    close = difflib.get_close_matches(word, by_part, n=5, cutoff=0.6)
    found = {name for part in close for name in by_part[part]}
    return [name for name in known if name in found][:12]
