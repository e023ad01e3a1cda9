"""Names are names: sites, modules and parameters are met exactly, patterns only where a user wrote one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hostile_names import LAYERS, NAMES, SITES, Hostile
from injecting import NOISE, SEED, names, oracle
from operators import assert_same_bits
from torch import nn

import noisykernels as nk
from noisykernels.injection.placement import Placement
from noisykernels.injection.site import Choice, Names, exactly, is_input, kind_of, meets, path_of
from noisykernels.noise.contract import hashed_id

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def noisy(model: nn.Module, where: Any, x: Any = X, **options: Any) -> list[str]:
    """The sites at which noise enters: asked of every operation's own value."""
    every = names(model, x)
    with nk.inject(model, NOISE, where, **{"example_input": x} | options):
        state = model.__dict__["_noise_state"]
        modules = dict(model.named_modules())
        return [n for n in every if state.placement.at(n, modules[path_of(n)]) is not None]


def test_parts_of_a_name_are_read_from_its_end() -> None:
    assert names(Hostile(), X) == SITES
    assert [path_of(s) for s in LAYERS] == list(NAMES)
    assert [kind_of(s) for s in LAYERS] == ["relu" if n == "x" else "linear" for n in NAMES]
    assert [s for s in SITES if is_input(s)] == ["input"]
    assert [s.id for s in nk.sites(Hostile(), X)] == [hashed_id(s) for s in SITES]


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("site", SITES)
def test_a_sites_name_means_this_site(site: str, traced: bool) -> None:
    """As it stands, in a list, and in dicts of noises, also behind a pattern."""
    options = {} if traced else {"example_input": None}
    model = Hostile()
    assert noisy(model, site, **options) == [site] == noisy(model, [site], **options)
    quiet, loud = nk.Noise(add=0.0), nk.Noise(add=2.0)
    with nk.inject(model, {"*": quiet, site: loud}, **({"example_input": X} if traced else {})):
        placement = model.__dict__["_noise_state"].placement
        assert [s for s in SITES if placement.at(s, model) is loud] == [site]
    with nk.inject(model, NOISE, repeats={"*": 2, site: 9}, row_dims={site: 1}):
        placement = model.__dict__["_noise_state"].placement
        assert [s for s in SITES if placement.repeats_at(s) == 9] == [site]
        assert [s for s in SITES if placement.row_dim_at(s) == 1] == [site]


@pytest.mark.parametrize("path", [n for n in NAMES if n not in ("input", "x:relu#0")])
def test_a_modules_path_means_its_sites(path: str) -> None:
    expected = [s for s in SITES if path_of(s) == path]
    assert noisy(Hostile(), path) == expected == noisy(Hostile(), path, example_input=None) and expected


def test_where_a_path_is_a_sites_name_too_the_site_is_meant() -> None:
    """Its module is reached by the name without the number."""
    assert noisy(Hostile(), "input") == ["input"] and noisy(Hostile(), "input:linear") == ["input:linear#0"]
    assert noisy(Hostile(), "x:relu#0") == ["x:relu#0"]
    assert noisy(Hostile(), "x:relu#0:linear") == ["x:relu#0:linear#0"]


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("*:relu#0", lambda s: s in (":relu#0", "x:relu#0", "x:relu#0:linear#0")),
        ("a[bB]", lambda s: s == "ab:linear#0"),
        ("l[0-9]", lambda s: s == "l1:linear#0"),
        ("??", lambda s: path_of(s) in ("a*", "ab", "AB", "l1")),
        ("input*", lambda s: s.startswith("input")),
        ("*", lambda s: True),
    ],
)
def test_what_is_no_name_is_a_pattern(pattern: str, expected: Callable[[str], bool]) -> None:
    assert noisy(Hostile(), pattern) == [s for s in SITES if expected(s)]


def test_case_counts() -> None:
    assert noisy(Hostile(), "AB") == ["AB:linear#0"] and noisy(Hostile(), "ab") == ["ab:linear#0"]
    with pytest.raises(ValueError, match="'Ab' matches no site"):
        nk.inject(Hostile(), NOISE, "Ab")


def test_a_module_without_sites_is_not_read_as_a_pattern() -> None:
    model = nn.Sequential()
    model.add_module("a*", nn.Dropout())
    model.add_module("ab", nn.ReLU())
    with nk.inject(model, NOISE, "a*", example_input=X), nk.noise_state(model, seed=SEED):
        assert_same_bits(model.eval()(X), oracle(X, "a*:module#0").relu())  # its result, and nothing of `ab`


def test_the_site_input_is_not_the_module_input() -> None:
    """To the bit, alone and as one of several arguments."""
    model = nn.Sequential()
    model.add_module("input", nn.ReLU())
    with nk.inject(model, NOISE, "input"), nk.noise_state(model, seed=SEED):
        assert_same_bits(model(X), oracle(X, "input").relu())
    with nk.inject(model, NOISE, "input:relu"), nk.noise_state(model, seed=SEED):
        assert_same_bits(model(X), oracle(X.relu(), "input:relu#0"))

    class Two(nn.Module):
        def forward(self, a, b):
            return a + 10 * b

    for where, expected in (("input", oracle(X, "input") + 10 * X), ("input#1", X + 10 * oracle(X, "input#1"))):
        with nk.inject(Two(), NOISE, where) as two, nk.noise_state(two, seed=SEED):
            assert_same_bits(two(X, X), expected)


@pytest.mark.parametrize("site", SITES)
def test_what_the_engine_places_is_exact(site: str) -> None:
    placed = Placement(noise=NOISE, where=exactly(site), hardware={exactly(site): ()}, repeats={exactly(site): 3})
    model = Hostile()
    assert [s for s in SITES if placed.at(s, model)] == [site]
    assert [s for s in SITES if placed.hardware_at(s, model) is not None] == [site]
    assert [s for s in SITES if placed.repeats_at(s) == 3] == [site]


def test_names_before_patterns() -> None:
    known = Names(SITES)
    order = [choice.text for choice in known.table(dict.fromkeys(["*", "ab", "ab:linear", "ab:linear#0", "a?"]))]
    assert order == ["ab:linear#0", "ab:linear", "ab", "*", "a?"]
    assert known.meant("input:linear#7").form == "name"  # a later call of what is known
    assert not meets("input#1", exactly("input")) and meets("input#1", Choice("input", "stem"))


def test_denoising_blocks_follow_the_site_of_their_name() -> None:
    from noisykernels.training import insert_denoising

    for name, layer in zip(NAMES, LAYERS, strict=True):
        with insert_denoising(Hostile(), layer, example_input=X) as inserted:
            assert list(inserted.blocks) == [layer] and hasattr(inserted.model.get_submodule(name), "denoising")
