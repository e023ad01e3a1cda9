"""Sites, the places of a forward pass at which noise can enter: what they are called and which are meant.

A site is one call of an operation. Its name, and so its noise, depends on nothing but the module that calls and how
often that module has called the same operation before.

A module may be called anything (`a*`, `l[1]`, `input`, `x:relu#0`). A name is taken apart from its end, since neither
kinds nor numbers hold a colon or a hash; the inputs are the names without a colon. Names are met exactly; a pattern is
only what a user has written and what is no name of the model.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

__all__ = ["Choice", "Names", "Site", "exactly", "is_input", "kind_of", "meets", "path_of"]


@dataclass(frozen=True)
class Site:
    """One site of a model: `name` is `module.path:kind#k`, or `input`; `index` counts in order.

    `row_dim` is the dimension that counts rows; None: there is no such dimension.
    """

    name: str
    index: int
    id: int
    kind: str
    shape: tuple[int, ...]
    row_dim: int | None


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


def _stem_of(name: str) -> str:
    """A site's name without the number of the call."""
    head, _, number = name.rpartition("#")
    return head if head and number.isdecimal() else name


class Choice(NamedTuple):
    """Sites that are meant: that of a name, those of a name without number, those of a module's path, or all that a
    pattern fits."""

    text: str
    form: Literal["name", "stem", "path", "pattern"]


FORMS = ("name", "stem", "path", "pattern")  # an earlier one counts before a later one


def exactly(name: str) -> Choice:
    """The one site of this name."""
    return Choice(name, "name")


@functools.lru_cache(maxsize=2**16)
def meets(name: str, text: str, form: str) -> bool:
    """Whether the site of this name is one that a `Choice` of this text and form means.

    Example:
        >>> [meets("a*:relu#0", *c) for c in (exactly("a*:relu#0"), Choice("a*", "path"), Choice("a[*]", "pattern"))]
        [True, True, True]
        >>> meets("ab:relu#0", "a*", "path")
        False
    """
    if form == "name":
        return name == text
    stem, path = _stem_of(name), path_of(name)
    if form == "stem":
        return stem == text
    if form == "path":
        return path == text and not is_input(name)
    return any(n and fnmatch.fnmatchcase(n, text) for n in (name, stem, path))


# As torch.compiler.assume_constant_result does it, which would import the whole compiler.
meets._dynamo_marked_constant = True  # type: ignore[attr-defined]


class Names:
    """What a model's sites and modules are called: whatever is one of these names is no pattern.

    Args:
        sites: names of sites.
        paths: of modules, besides those of the sites.

    Example:
        >>> Names(["a*:relu#0", "ab:relu#0"]).meant("a*"), Names(["ab:relu#0"]).meant("a*")
        (Choice(text='a*', form='path'), Choice(text='a*', form='pattern'))
    """

    def __init__(self, sites: Iterable[str], paths: Iterable[str] = ()) -> None:
        self.sites = list(sites)
        self._names, self._stems = set(self.sites), {_stem_of(n) for n in self.sites}
        self._paths = {path for path in (*map(path_of, self.sites), *paths) if path}

    def meant(self, text: str) -> Choice:
        """What a user's word means."""
        if text in self._names:
            return Choice(text, "name")
        if text in self._stems:
            return Choice(text, "stem")
        if text in self._paths:
            return Choice(text, "path")
        # The number of a call that has not been seen: names are known as far as a model can be looked at.
        return Choice(text, "name" if _stem_of(text) != text and _stem_of(text) in self._stems else "pattern")

    def table(self, given: dict[Any, Any]) -> dict[Choice, Any]:
        """A user's dict by what its words mean, in the order in which they count: names before patterns."""
        meant = {self.meant(key[0] if isinstance(key, Choice) else key): value for key, value in given.items()}
        return dict(sorted(meant.items(), key=lambda item: FORMS.index(item[0].form)))

    def unmet(self, choice: Choice) -> bool:
        """Whether a choice means no site."""
        return not any(meets(name, *choice) for name in self.sites)
