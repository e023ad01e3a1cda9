"""Loops over sites, levels, seeds and draws compile one graph; new injections of other numbers compile nothing anew."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels import hardware


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.fc = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.norm(self.conv(x))).flatten(1))


X = torch.randn(3, 1, 6, 6)


class Counting:
    """A compiler that runs the graph as it is and counts how often it is asked."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward


@pytest.fixture
def counting() -> Iterator[Counting]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        yield Counting()
    assert not torch._dynamo.utils.counters["graph_break"]
    torch._dynamo.reset()


@pytest.mark.parametrize("form", ["add", "mixed", "hardware"])
def test_a_loop_over_sites_levels_seeds_and_draws_is_one_graph(form: str, counting: Counting) -> None:
    """Noise everywhere, at levels that are tensors: 0 but for the site that is walked."""
    model = Small().eval()
    levels = {site.name: torch.zeros((), dtype=torch.float64) for site in nk.sites(model, X)}
    if form == "hardware":
        levels = {name: level for name, level in levels.items() if "conv2d" in name or "linear" in name}
    of = {
        "add": lambda level: nk.Noise(add=level),
        "mixed": lambda level: nk.Noise(add=level, mul=level, kind="uniform"),
        "hardware": lambda level: [nk.WeightNoise(add=level), nk.MacNoise(read=level)],
    }[form]
    placed = "hardware" if form == "hardware" else "noise"

    def injected(table: dict[str, Any]) -> Any:
        return nk.inject(model, **{"noise": None, placed: {n: of(v) for n, v in table.items()}}, example_input=X)

    wanted = {}
    runs = list(itertools.product(levels, (0.5, 2.0), (1, 2), ([0, 1], [4, 3])))
    for name, level, seed, draws in runs:
        with injected({name: level}), nk.noise_state(model, seed=seed, draws=draws):
            wanted[name, level, seed, tuple(draws)] = model(X)
    compiled = torch.compile(model, backend=counting, fullgraph=True)
    with injected(levels), torch._dynamo.config.patch(error_on_recompile=True):
        for name, level, seed, draws in runs:
            levels[name].fill_(level)
            with nk.noise_state(model, seed=seed, draws=draws):
                want = wanted[name, level, seed, tuple(draws)]
                torch.testing.assert_close(compiled(X), want, rtol=1e-5, atol=1e-5)
                assert form == "hardware" or torch.equal(model(X), want)  # a level of 0 changes no value
            levels[name].zero_()
    assert counting.graphs == 1 and torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


NUMBERS: dict[str, Any] = {
    "noise": lambda v: dict(noise=nk.Noise(add=v, mul=v), where="conv"),
    "table": lambda v: dict(noise={"conv": nk.Noise(add=v), ":relu": nk.Noise(mul=v)}),
    "repeats": lambda v: dict(noise=nk.Noise(add=v), repeats=3),
    "normalised": lambda v: dict(noise=nk.Noise(add=v), normalize_to_input_size=True),
    "weights": lambda v: dict(noise=nk.Noise(add=v), hardware=[nk.WeightNoise(add=v, relative="layer")]),
    "periphery": lambda v: dict(
        noise=None, hardware=[hardware.DAC(4, limit=v), hardware.ColumnGain(v), hardware.ADC(4, limit=9 * v)]
    ),
    "cells": lambda v: dict(noise=None, hardware=[hardware.PCM(time=100 * v, programming=v, read=v)]),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_new_injections_of_other_numbers_compile_nothing(case: str, counting: Counting) -> None:
    model = Small().eval()
    compiled = torch.compile(model, backend=counting, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number, level in enumerate((0.5, 0.25, 2.0)):
            with nk.inject(model, **NUMBERS[case](level)), nk.noise_state(model, seed=number):
                torch.testing.assert_close(compiled(X), model(X), rtol=1e-5, atol=1e-5)
    assert counting.graphs == 1


def test_each_site_that_is_injected_alone_compiles_once(counting: Counting) -> None:
    model = Small().eval()
    names = [site.name for site in nk.sites(model, X)]
    compiled = torch.compile(model, backend=counting, fullgraph=True)
    for level, name in itertools.product((0.5, 2.0), names):
        with nk.inject(model, nk.Noise(add=level), where=name), nk.noise_state(model, seed=1, level=level):
            torch.testing.assert_close(compiled(X), model(X), rtol=1e-5, atol=1e-5)
    assert counting.graphs == len(names)
