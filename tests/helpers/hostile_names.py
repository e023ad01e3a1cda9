"""A model whose modules are called as nobody would call them, for all who meet sites and modules by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Names of sites and inputs, patterns, separators of stores and tables, markup, formulas, names that differ in case.
NAMES = (
    "input", "input#1", "a*", "ab", "AB", "l[12]", "l1", "x", "x:relu#0", "?", "q|0x1p+0;1,2~1", "two words",
    "<b>&amp;", "=1+1", "$\\no$ $x$", "-",
)  # fmt: skip


class Hostile(nn.Module):
    """Linear layers of these names, with a rectifier after each; `x` is one alone, beside the site `x:relu#0`."""

    def __init__(self, width: int = 6, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name in NAMES:
            self.add_module(name, nn.ReLU() if name == "x" else nn.Linear(width, width))
        self.add_module("#", nn.Linear(width, classes))

    def forward(self, h: Tensor) -> Tensor:
        for name in NAMES:
            h = self.get_submodule(name)(h)
            if name != "x":
                h = torch.relu(h) + h
        return self.get_submodule("#")(h)


# Every site, in execution order: the functions belong to the model itself.
LAYERS = [f"{name}:{'relu' if name == 'x' else 'linear'}#0" for name in NAMES]
FUNCTIONS = {name: f":relu#{k}" for k, name in enumerate(n for n in NAMES if n != "x")}
SITES = ["input"]
for _name, _layer in zip(NAMES, LAYERS, strict=True):
    SITES += [_layer] if _name == "x" else [_layer, FUNCTIONS[_name]]
SITES.append("#:linear#0")
