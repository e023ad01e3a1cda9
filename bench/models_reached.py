"""Which sites of models that people use the engine that shares work reaches, that it finds there what the plain engine
finds, how long recording takes, and how much faster a walk is than a loop of plain torch: docs/results/models.md.

`python bench/models_reached.py [NAME ...] [--out PAGE]` walks the look-alikes of `tests/helpers/models`; names such as
`tv.resnet18` or `timm.resnet18` record originals, where torchvision or timm are installed.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels._graph.recorder import record_tape
from noisykernels._graph.tape import NotTraceable
from noisykernels.injection.placement import SILENT
from noisykernels.injection.state import state_of

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from models import MODELS, made
from models.walking import Parity, reached, walked

ROWS, LEVELS, DRAWS = 64, [0.1 * 1.5**k for k in range(20)], 2
LOOPS = 5  # cells of the loop that are timed
HEAD = """# Models that people use

`python bench/models_reached.py --out docs/results/models.md` writes this page: small look-alikes
(`tests/helpers/models`), laid out and written as the originals of transformers, timm, torchvision, torch-geometric and
others are, with random weights. `tests/graph/test_models_reached.py` holds the columns "reached" and "equal".

- **reached**: of the sites at which noise can enter, those that the engine that shares work runs.
- **equal**: of the cells (site, level, draw) of both engines' walks, those in which a measure of all outputs differs by
  no more than one of 12 rows, which a rounding may move.
- **recording**: seconds, once for each walk: three forwards, and each operation on other rows.
- **faster**: than a loop of plain torch with a forward hook that adds `level * torch.randn_like(y)`: the whole walk,
  its recording and check included, {levels} levels x {draws} draws on {rows} rows, one thread. In forwards of this size
  most of the time are calls, and much of the walk's is its check, whatever the number of rows: where a loop takes less
  than a second, the loop is the faster way. What larger networks gain: [engine](../design/engine.md).

| model | sites | reached | equal | recording, s | faster |
|---|---|---|---|---|---|
"""


class Line(NamedTuple):
    """Of the table."""

    name: str
    sites: int
    reached: int
    cells: int
    equal: int
    recording: float
    faster: float
    why: Counter[str]

    def __str__(self) -> str:
        cells, faster = f"{self.equal} of {self.cells}", f"{self.faster:.1f}" if self.faster >= 0.05 else "<0.1"
        return f"| {self.name} | {self.sites} | {self.reached} | {cells} | {self.recording:.2f} | {faster} |"


def recording(model: nn.Module, x: Tensor) -> tuple[float, int, int, Counter[str]]:
    """Seconds, sites, those reached, and why others are not."""
    with nk.inject(model, None, example_input=x[:2]) as injected, torch.inference_mode():
        state_of(injected).placement = SILENT
        sites, start = len(state_of(injected).traced), time.perf_counter()
        try:
            tape = record_tape(injected, x[:4])
        except NotTraceable as reason:
            return time.perf_counter() - start, sites, 0, Counter([str(reason)])
        return time.perf_counter() - start, sites, len(tape.sites), Counter(tape.refused.values())


def looped(model: nn.Module, x: Tensor, level: float) -> float:
    """Seconds of a cell of the loop: noise behind the last layer that gives a tensor."""
    hooked = [m for m in model.modules() if not list(m.children()) and list(m.parameters())][-1]

    def noisy(module: nn.Module, args: Any, y: Any) -> Any:
        return y + level * torch.randn_like(y) if isinstance(y, Tensor) and y.is_floating_point() else y

    handle = hooked.register_forward_hook(noisy)
    start = time.perf_counter()
    model(x)
    handle.remove()
    return time.perf_counter() - start


def line(name: str) -> Line:
    """What there is to say of a look-alike."""
    warnings.simplefilter("ignore")
    names, why = reached(name)
    both = walked(name)
    model, x = made(name, ROWS)
    seconds, *_ = recording(model, x)
    with torch.inference_mode():
        looped(model, x, 0.1)
        loop = sum(looped(model, x, level) for level in LEVELS[:LOOPS])
        metric = Parity(model(x))
        start = time.perf_counter()
        how: dict[str, Any] = dict(levels=LEVELS, draws=DRAWS, seed=0, metric=metric)
        nk.walk(model, (x, torch.zeros(ROWS, dtype=torch.int64)), noise=nk.Noise(add=0.3), **how,
                compute=nk.Compute(engine="shared"))  # fmt: skip
        ours = time.perf_counter() - start
        loop = (loop + sum(looped(model, x, level) for level in LEVELS[-LOOPS:])) / (2 * LOOPS)
    faster = loop * len(names) * len(LEVELS) * DRAWS / ours
    found = len(names) - len(why)
    return Line(
        name, len(names), found, both.cells, both.cells - both.differing, seconds, faster, Counter(why.values())
    )


def original(name: str) -> None:
    """Prints how far a model of torchvision or timm is reached: random weights, four images of 224 x 224."""
    source, _, kind = name.partition(".")
    package = importlib.import_module("torchvision.models" if source == "tv" else "timm")
    build = package.get_model if source == "tv" else package.create_model
    torch.manual_seed(0)
    seconds, sites, found, why = recording(build(kind, num_classes=10).eval(), torch.randn(4, 3, 224, 224))
    print(f"{name}: {found} of {sites} sites, {seconds:.1f} s {why.most_common(2) or ''}", flush=True)


def main() -> None:
    """Prints a line for each model, and writes the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for name in args.names or MODELS:
        if name.startswith(("tv.", "timm.")):
            original(name)
            continue
        lines.append(line(name))
        print(lines[-1], flush=True)
    whole = [one for one in lines if one.why]
    text = HEAD.format(levels=len(LEVELS), draws=DRAWS, rows=ROWS) + "\n".join(map(str, lines))
    sites, found = sum(one.sites for one in lines), sum(one.reached for one in lines)
    everywhere = len(lines) - len(whole)
    text += f"\n\n{everywhere} of {len(lines)} models are reached everywhere, {found} of {sites} sites. The rest:\n\n"
    text += "\n".join(f"- {one.name}: {', '.join(one.why)}" for one in whole) + "\n"
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
