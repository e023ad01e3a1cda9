"""Which sites of models that people use the engine that shares work reaches, that it finds there what the plain engine
finds, how long recording takes, and how much faster a walk is than a loop of plain torch: docs/results/models.md.

`python bench/models_reached.py [NAME ...] [--out PAGE]` walks the models of torchvision, timm and transformers where
these are installed (`make test-models` makes an environment with them), and look-alikes (`tests/helpers/models`) of
others. Of a page that is there already, only the rows of the models named are measured anew.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels._util.inputs import Inputs

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from models import MODELS, ORIGINALS, made
from models.walking import IDLE, Parity, call_of, clean_products, reached, some_of, walked
from torchvision_ops import complete_torchvision

LEVELS, DRAWS = [0.1 * 1.5**k for k in range(20)], 2
LOOPS = 5  # cells of the loop that are timed
LARGE = 0.02  # seconds of a cell, from which on an original is walked at fewer levels
HEAD = """# Models that people use

`python bench/models_reached.py --out docs/results/models.md` writes this page, with random weights throughout: the
models of torchvision, timm and transformers themselves, at small configurations and with the dicts that their
tokenizers give (`make test-models` installs them), and small look-alikes of others (`tests/helpers/models`), laid out
and written as the originals are. `tests/models_of_others` and `tests/graph/test_models_reached.py` hold "reached" and
"equal".

- **of**: the package that a model is from.
- **sites**: at which noise can enter, and from which something leads to the scores.
- **reached**: of these, those that the engine that shares work runs.
- **equal**: of the cells (site, level, draw) of both engines' walks (of originals, at 6 sites), those in which a
  measure of all outputs differs by no more than one row, which a rounding may move.
- **recording**: seconds of the processor, once for each walk: three forwards, and each operation on other rows.
- **faster**: than a loop of plain torch with a forward hook that adds `level * torch.randn_like(y)`: the whole walk,
  its recording and check included, one thread. Look-alikes: 20 levels x 2 draws on 64 rows at all sites. Originals:
  20 levels (7 where a forward takes more than 0.02 s) x 2 draws on 16 rows, four sites that stand for all. In forwards
  of this size most of the time are calls, and much of the walk's is its check, whatever the number of rows: where a
  loop takes less than a second, the loop is the faster way. What larger networks gain: [engine](../design/engine.md).

| model | of | sites | reached | equal | recording, s | faster |
|---|---|---|---|---|---|---|
"""
REST = " Not reached, and products after which no noise enters:"


class Line(NamedTuple):
    """Of the table."""

    name: str
    package: str
    sites: int
    reached: int
    equal: str
    recording: str
    faster: str

    @classmethod
    def read(cls, row: str) -> Line:
        """From a row of a page."""
        name, package, sites, found, *rest = [cell.strip() for cell in row.strip().strip("|").split("|")]
        return cls(name, package, int(sites), int(found), *rest)

    def __str__(self) -> str:
        return f"| {' | '.join(map(str, self))} |"


def looped(name: str, model: nn.Module, x: Inputs, level: float) -> float:
    """Seconds of a cell of the loop: noise behind the last layer that gives a tensor."""
    hooked = [m for m in model.modules() if not list(m.children()) and list(m.parameters())][-1]

    def noisy(module: nn.Module, args: Any, y: Any) -> Any:
        return y + level * torch.randn_like(y) if isinstance(y, Tensor) and y.is_floating_point() else y

    handle = hooked.register_forward_hook(noisy)
    start = time.process_time()
    call_of(name)(model, x.clone())
    handle.remove()
    return time.process_time() - start


def line(name: str) -> tuple[Line, list[str]]:
    """What there is to say of a model, and what of it is not reached, with the reason."""
    warnings.simplefilter("ignore")
    is_original = name in ORIGINALS
    rows, most = (16, 4) if is_original else (64, None)
    made(name, 2)  # packages load when they are first asked
    start = time.process_time()
    sites, why = reached(name)
    seconds = time.process_time() - start
    mine = [site for site in sites if why.get(site) != IDLE]
    both = walked(name, rows=5, most=6, levels=(1.0,), draws=(0,)) if is_original else walked(name)
    model, x = made(name, rows)
    given, some = Inputs.of(x), some_of(mine, most)
    with torch.inference_mode():
        metric = Parity(call_of(name)(model, given.clone()))
        looped(name, model, given, 0.1)
        loop = sum(looped(name, model, given, level) for level in LEVELS[:LOOPS])
        levels = LEVELS if not is_original or loop < LOOPS * LARGE else LEVELS[::3]
        start = time.process_time()
        how: dict[str, Any] = dict(levels=levels, draws=DRAWS, seed=0, metric=metric, output=call_of(name).output)
        nk.walk(model, (x, torch.zeros(rows, dtype=torch.int64)), noise=nk.Noise(add=0.3), sites=some, **how,
                compute=nk.Compute(engine="shared"))  # fmt: skip
        ours = time.process_time() - start
        loop = (loop + sum(looped(name, model, given, level) for level in LEVELS[-LOOPS:])) / (2 * LOOPS)
    ours = seconds + max(0.0, ours - seconds) * len(mine) / len(some)
    faster = loop * len(mine) * len(levels) * DRAWS / ours
    told = [f"{site}: {reason}" for site, reason in why.items() if reason != IDLE]
    share, clean = clean_products(name)
    if clean:
        told.append(f"noise enters after {share:.1%} of its multiply-adds; not at {_shortly(clean)}")
    bare, package = (name.partition(": ")[2], ORIGINALS[name].package) if is_original else (name, "look-alike")
    equal, times = f"{both.cells - both.differing} of {both.cells}", f"{faster:.1f}" if faster >= 0.05 else "<0.1"
    found = len(mine) - sum(site in why for site in mine)
    return Line(bare, package, len(mine), found, equal, f"{seconds:.2f}", times), told


def _shortly(clean: dict[str, str]) -> str:
    (first, reason), *others = clean.items()
    return f"{first}{f' and {len(others)} more' if others else ''} ({reason})"


def page(lines: Iterable[Line], told: dict[str, list[str]]) -> str:
    """The table, and what there is to say of models that are not reached everywhere."""
    lines = list(lines)
    sites, found = sum(one.sites for one in lines), sum(one.reached for one in lines)
    everywhere, own = sum(one.sites == one.reached for one in lines), sum(one.package != "look-alike" for one in lines)
    text = HEAD + "\n".join(map(str, lines))
    text += (
        f"\n\n{everywhere} of {len(lines)} models, of which {own} are originals, are reached everywhere: {found} of "
    )
    rest = "\n".join(f"- {name}: {'; '.join(told[name])}" for name in sorted(told))
    return f"{text}{sites} sites.{REST}\n\n{rest}\n"


def known(path: Path) -> tuple[dict[str, Line], dict[str, list[str]]]:
    """The rows of a page, and what it tells of them."""
    text = path.read_text() if path.exists() else ""
    rows = [Line.read(row) for row in text.split("|---|\n")[-1].splitlines() if row.startswith("| ")]
    told = [row[2:].split(": ", 2) for row in text.rpartition(REST)[2].splitlines() if row.startswith("- ")]
    return {f"{one.package}: {one.name}": one for one in rows}, {
        f"{package}: {name}": [what] for package, name, what in told
    }


def main() -> None:
    """Prints a line for each model, and writes the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    library = complete_torchvision()  # held: it lives as long as this
    torch.set_num_threads(1)
    installed = [name for name, one in ORIGINALS.items() if importlib.util.find_spec(one.package) is not None]
    there = {name.partition(": ")[2] for name in installed}
    names = args.names or [*installed, *(name for name in MODELS if name not in there)]
    lines, told = known(args.out) if args.out and args.names else ({}, {})
    for name in names:
        one, what = line(name)
        key = f"{one.package}: {one.name}"
        lines[key] = one
        told.pop(key, None)
        told |= {key: what} if what else {}
        print(one, *what, flush=True)
        if args.out:
            args.out.write_text(page(lines.values(), told))
    del library


if __name__ == "__main__":
    main()
