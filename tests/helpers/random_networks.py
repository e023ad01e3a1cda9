"""Random small networks: from a seed the text of a model, the model, its data, a target and its noise.

A pure function of the seed (and of the names of its pieces, if these are given). A network is a chain of pieces of
text, so that one that fails can be printed, shortened and run by hand. A piece is

    name | kind of value that it takes > kind that it gives | what becomes of the sizes
        + a statement that makes its modules
        a statement on the variable x

with kinds v: (rows, F), s: (rows, T, F) and i: (rows, C, H, H). $F, $T, $C and $H are sizes of what it takes; $G and $D
new ones, $h and $h2 parts that F and C can be cut into, $ACT an activation, $k the piece's number. What it keeps in
`self` gets its number behind the name.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import Template
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from network_batches import BATCHES
from network_folded import FOLDED
from network_tokens import TOKENS_AND_IMAGES
from network_traps import TRAPS
from network_vectors import VECTORS
from torch import Tensor, nn

import noisykernels as nk

__all__ = ["PIECES", "Case", "Piece", "case_of"]

CLASSES = 4
ACTIVATIONS = "torch.relu torch.tanh F.gelu F.silu F.leaky_relu torch.sigmoid F.softplus F.hardtanh F.elu F.relu6"
ENDINGS = {
    "return self.head(x)": 12.0,
    "return self.head(torch.relu(x))": 3,
    "return self.head(x).log_softmax(-1)": 2,
    "y = self.head(x); return torch.cat([y, y], 1)": 1,
    "return F.linear(x, self.head.weight)": 1,
    "y = self.head(x).clamp(-1, 1); return y - y": 0.2,
}
NOISES = {
    "activation": {
        "nk.Noise(add=0.7)": 4.0,
        "nk.Noise(mul=0.7)": 2,
        "nk.Noise(add=0.5, mul=0.5)": 2,
        'nk.Noise(add=0.5, mul=0.5, order="add_mul")': 2,
        "nk.Noise(add=0.5, mul=0.5, fold=True)": 1,
        'nk.Noise(add=0.6, kind="uniform")': 1,
        'nk.Noise(add=0.4, mul=0.3, kind="laplace")': 1,
        "nk.Noise(add=nk.per_channel(torch.linspace(0, 1.5, CHANNELS), ndim=DIMENSIONS))": 1,
    },
    "weight": {
        'nk.WeightNoise(add=0.3, relative="layer")': 2.0,
        "nk.WeightNoise(mul=0.5)": 1,
        'nk.WeightNoise(add=0.3, mul=0.3, fold=True, relative="channel")': 1,
        'nk.WeightNoise(add=0.2, kind="uniform")': 1,
    },
    "parameter": {
        "lambda v: [nk.arithmetic.Serial(low=-2 * v - 0.1, high=2 * v + 0.1)]": 1.0,
        'lambda v: [nk.hardware.DAC(int(v) + 2, "row")]': 1,
        "lambda v: [nk.hardware.ColumnOffset(v), nk.hardware.ColumnGain(v)]": 1,
    },
}
LEVELS = ((0.0, 0.5, 2.0), (0.25, 1.0, 4.0), (0.0, 1.0, 8.0))  # exact in every type
PASSES: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"draws_per_pass": 2},
    {"batch_rows": 5},
    {"batch_rows": 7, "memory": 40_000},
)


class Tree(nn.Module):
    """A module that holds one of its own class."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.f = nn.Linear(width, width)
        self.inner = Tree(width, depth - 1) if depth else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.f(x))
        return y if self.inner is None else y + self.inner(y)


class Again(nn.Module):
    """A module that calls itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.f = nn.Linear(width, width)

    def forward(self, x: Tensor, times: int) -> Tensor:
        return x if times == 0 else self(torch.tanh(self.f(x)), times - 1)


class Double(torch.autograd.Function):
    """A function with a derivative of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g


SPACE: dict[str, Any] = {
    "torch": torch, "nn": nn, "F": F, "np": np, "nk": nk, "Tree": Tree, "Again": Again, "Double": Double
}  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """A part of a forward, as text."""

    name: str
    takes: str
    gives: str
    sizes: dict[str, str]
    made: tuple[str, ...]
    run: tuple[str, ...]
    sort: str  # everyday, hard or batch

    @property
    def half(self) -> bool:
        """Whether it computes in a half type."""
        return bool(re.search("float16|half|autocast", " ".join((*self.made, *self.run))))

    @property
    def removable(self) -> bool:
        """Whether a network without it has the same shapes after it."""
        return self.takes == self.gives and not self.sizes

    def choices(self, seed: int, k: int) -> dict[str, Any]:
        """What is drawn for it, wherever it stands in the chain of a seed."""
        r = random.Random(f"{seed} {self.name}")
        return {"G": r.randint(3, 8), "D": r.randint(2, 4), "ACT": r.choice(ACTIVATIONS.split()), "k": k}

    def after(self, before: dict[str, Any]) -> dict[str, int]:
        """The sizes of what it gives."""
        return {n: eval(formula, {}, before) for n, formula in self.sizes.items()}


def _pieces(text: str, sort: str) -> dict[str, Piece]:
    found = {}
    for block in re.split(r"\n(?=\S)", text.strip()):
        head, *lines = block.splitlines()
        name, kinds, *sizes = (part.strip() for part in head.split(" | "))
        takes, gives = kinds.split(" > ")
        changes = dict(s.split(" = ") for s in sizes[0].split("; ")) if sizes else {}
        made = tuple(s.strip()[2:] for s in lines if s.lstrip().startswith("+ "))
        run = tuple(s[4:] for s in lines if not s.lstrip().startswith("+ "))
        found[name] = Piece(name, takes, gives, changes, made, run, sort)
    return found


PIECES = {
    **_pieces(VECTORS + TOKENS_AND_IMAGES + FOLDED, "everyday"),
    **_pieces(TRAPS, "hard"),
    **_pieces(BATCHES, "batch"),
}


@dataclass(frozen=True)
class Case:
    """What a seed stands for."""

    seed: int
    sizes: dict[str, int]
    chain: tuple[Piece, ...]
    ending: str
    rows: int
    dtype: torch.dtype
    target: str  # activation, weight or parameter
    noise: str  # an expression
    levels: tuple[float, ...]
    draws: tuple[int, ...]
    ids: tuple[int, ...]
    compute: dict[str, Any]
    by_argmax: bool
    plateaus: float | None
    more: bool  # walks another noise with it

    @property
    def names(self) -> str:
        """Its pieces."""
        return "; ".join(piece.name for piece in self.chain)

    @property
    def sort(self) -> str:
        """The worst of its pieces."""
        sorts = {piece.sort for piece in self.chain}
        return next((sort for sort in ("batch", "hard") if sort in sorts), "everyday")

    @property
    def half(self) -> bool:
        """Whether a part of it computes in a half type."""
        return any(piece.half for piece in self.chain)

    def text(self) -> str:
        """The model as Python."""
        made, run, sizes = [], [], dict(self.sizes)
        for k, piece in enumerate(self.chain):
            known = sizes | piece.choices(self.seed, k)
            known |= {"h": 2 if known["F"] % 2 == 0 else 1, "h2": 2 if known["C"] % 2 == 0 else 1}
            own = re.compile(r"self\.(?!training)([a-z]+)\b")

            def filled(lines: tuple[str, ...], own: Any = own, k: int = k, known: Any = known) -> list[str]:
                return [Template(own.sub(rf"self.\g<1>{k}", line)).substitute(known) for line in lines]

            made += filled(piece.made)
            run += [f"# {piece.name}", *filled(piece.run)]
            sizes |= piece.after(known)
        made.append(f"self.head = nn.Linear({sizes['F']}, {CLASSES})")
        lines = ["class Network(nn.Module):", "    def __init__(self):", "        super().__init__()"]
        lines += [f"        {line}" for line in made] + ["", "    def forward(self, x):"]
        return "\n".join([*lines, *(f"        {line}" for line in (*run, self.ending)), ""])

    def model(self) -> nn.Module:
        """The model, with norms that do something; every call gives an equal one."""
        space = dict(SPACE)
        exec(compile(self.text(), f"<network {self.seed}>", "exec"), space)
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with torch.random.fork_rng([]), torch.no_grad():
                torch.manual_seed(self.seed)
                model: nn.Module = space["Network"]().eval()
                for module in model.modules():
                    if getattr(module, "running_var", None) is not None:
                        module.running_mean.normal_()
                        module.running_var.uniform_(0.5, 2)
                    if "Norm" in type(module).__name__ and getattr(module, "weight", None) is not None:
                        module.weight.normal_(1.0, 0.5)
        finally:
            torch.set_default_dtype(before)
        return model

    def data(self) -> Tensor:
        """Inputs."""
        f, t, c, h = (self.sizes[n] for n in "FTCH")
        shape = {"v": (f,), "s": (t, f), "i": (c, h, h)}[self.chain[0].takes]
        g = torch.Generator().manual_seed(self.seed)
        return torch.randn(self.rows, *shape, generator=g, dtype=torch.float64).to(self.dtype)

    @property
    def by_channel(self) -> bool:
        """Whether its noise fits one site only."""
        return "CHANNELS" in self.noise

    def noise_at(self, shape: Sequence[int]) -> Any:
        """The noise at a site whose values have some shape, or the function that makes the hardware."""
        return eval(self.noise, SPACE | {"CHANNELS": shape[1] if len(shape) > 1 else 1, "DIMENSIONS": len(shape)})


def case_of(seed: int, names: Sequence[str] = ()) -> Case:
    """The case of a seed; with these pieces, if they are given."""
    r = random.Random(f"{seed} how")
    sizes = {"F": r.randint(3, 8), "T": r.randint(3, 5), "C": r.randint(2, 4), "H": r.randint(4, 6)}
    chain = tuple(PIECES[name] for name in names) or _chain(seed, sizes)
    rows, target = r.randint(6, 24), r.choices(["activation", "weight", "parameter"], [8, 2, 1])[0]
    table = NOISES[target]
    case = Case(
        seed=seed, sizes=sizes, chain=chain, rows=rows, target=target,
        ending=r.choices(list(ENDINGS), list(ENDINGS.values()))[0],
        noise=r.choices(list(table), list(table.values()))[0],
        dtype=torch.float64 if r.random() < 0.85 else torch.float32,
        levels=r.choice(LEVELS), draws=r.choice([(0, 3), (5, 1), (2,)]),
        ids=tuple(range(rows)) if r.random() < 0.5 else tuple(r.sample(range(2**31), rows)),
        by_argmax=r.random() < 0.3, compute=r.choice(PASSES), plateaus=r.choice([None, None, 0.03]),
        more=r.random() < 0.2,
    )  # fmt: skip
    if target != "activation" or case.sort == "batch":  # which leave rows out, or take them from each other
        case = replace(case, plateaus=None)
    # Where rows look at each other, passes of one draw and of all rows are the loop's.
    return replace(case, compute={"draws_per_pass": 1}) if case.sort == "batch" else case


def _trap(seed: int) -> Piece | None:
    """The piece of another sort that one network in four has, each in turn."""
    traps = [piece for piece in PIECES.values() if piece.sort != "everyday"]
    random.Random(0).shuffle(traps)
    return traps[seed // 4 % len(traps)] if seed % 4 == 1 else None


def _chain(seed: int, sizes: dict[str, int]) -> tuple[Piece, ...]:
    """Two to five everyday pieces, in one network of four a trap between them, then on to a vector."""
    r, trap, now, found = random.Random(seed), _trap(seed), dict(sizes), []
    kind, left = r.choice("vvssi"), r.randint(2, 5)
    when = r.randint(0, left)
    if trap is not None and trap.takes != "v":
        kind, when = trap.takes, min(when, 1)
    while left or kind != "v" or trap is not None:
        fit = [p for p in PIECES.values() if p.takes == kind and p.sort == "everyday" and _fits(p, now)]
        if trap is not None and when <= 0 and trap.takes == kind and (kind != "v" or 3 <= now["F"] <= 12):
            piece, trap = trap, None
        else:
            keeps = trap is not None and trap.takes != "v"
            on = not keeps and (left == 0 or (when <= 0 and trap is not None))
            wanted = [p for p in fit if (not keeps or p.gives == kind) and (not on or p.gives == "v" != kind)]
            piece, left, when = r.choice(wanted or fit), max(0, left - 1), when - 1
        now |= piece.after(now | piece.choices(seed, 0))
        kind = piece.gives
        found.append(piece)
    return tuple(found)


def _fits(piece: Piece, sizes: dict[str, int]) -> bool:
    """Whether values are large enough for it, and not too large."""
    if piece.takes == "i" and (sizes["H"] < 4 or sizes["C"] > 6):
        return piece.gives == "v"
    if piece.takes == "s" and sizes["T"] > 8:
        return piece.gives == "v"
    if piece.takes == "v" and not 3 <= sizes["F"] <= 12:
        return piece.name == "linear"
    return True
