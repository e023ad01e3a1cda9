"""Words that choose sites compile: patterns, blocks, types, tables, functions, in one graph; and are exported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk

NOISE, OTHER = nk.Noise(add=0.5), nk.Noise(mul=0.25)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2 = nn.Linear(6, 6), nn.Linear(6, 4)
        self.w = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(x))) @ self.w


CASES: dict[str, dict[str, Any]] = {
    "pattern": dict(noise=NOISE, where="fc*"),
    "words": dict(noise=NOISE, where=["fc1", "fc2:linear#0", ":matmul"]),
    "type": dict(noise=NOISE, where=nn.Linear),
    "table": dict(noise={"fc*": NOISE, ":relu": OTHER, ":matmul#0": NOISE}),
    "repeats": dict(noise=nk.Noise(add=0.1, kind="uniform"), repeats={"fc*": 3}),
    "row_dims": dict(noise=NOISE, row_dims={"fc*": 0}),
    "function": dict(noise=NOISE, where=lambda name, module: NOISE if name.startswith("fc1") else None),
    "hardware": dict(noise=None, hardware={"fc*": [nk.WeightNoise(add=0.1)]}),
    "a product's": dict(noise=None, hardware={":matmul": [nk.WeightNoise(add=0.1)]}),
}


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_words_compile_in_one_graph(case: str, traced: bool) -> None:
    model, x, graphs = Model(), torch.randn(3, 6), []

    def backend(graph: Any, example: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with nk.inject(model, example_input=x if traced else None, **CASES[case]), torch.no_grad():
        with nk.noise_state(model, seed=0):
            model(x)  # which looks whether all words meet a site
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        for seed, level in ((1, 1.0), (2, 0.5), (3, 0.0)):
            with nk.noise_state(model, seed=seed, level=level):
                assert torch.allclose(compiled(x), model(x), atol=1e-5)
    assert len(graphs) == 1 and not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("case", ["pattern", "table", "row_dims"])
def test_words_are_exported(case: str) -> None:
    model, x = Model(), torch.randn(3, 6)
    torch._dynamo.reset()
    with nk.inject(model, **CASES[case]), nk.noise_state(model, seed=1):
        exported = torch.export.export(model, (x,), strict=True).module()
        assert torch.allclose(exported(x), model(x), atol=1e-5)
