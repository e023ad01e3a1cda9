"""What walks over the tokens of a language model cost, against the loop of whole passes that is written by hand.

`python bench/bench_tokens.py [--steps N] [--threads 1]` prints three tables, in processor time of one thread, all that
is compared interleaved:

- a walk of all projections of the zoo's Llama, 20 levels x 2 draws, perplexity, tokens as rows; and the question at
  which level perplexity is 5 % higher, within 5 %. The loop is plain torch, written well: noise in a forward hook,
  `inference_mode`, one pass for each (projection, level, draw), timed at all projections and multiplied, for its time
  depends on neither level nor draw. For the question, the loop's grid is one of the same precision: see `precise`;
- noise of tokens against noise of rows, and noise in units of a token's rms against noise of a fixed size, at all
  projections of a whole pass;
- recording models of 12 blocks.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import noisykernels as nk
from noisykernels._engine.verification import Check
from noisykernels._graph.recorder import record_tape
from noisykernels.datasets import kjv
from noisykernels.zoo import language
from noisykernels.zoo.llama import Llama, LlamaSizes

LEVELS, DRAWS = [0.01 * 10 ** (k * 4 / 19) for k in range(20)], 2
WINDOW = 128
WHERE = "*_proj"
ROUNDS = 7


def clock(call: Callable[[], Any]) -> float:
    """Seconds of the processor."""
    start = time.process_time()
    call()
    return time.process_time() - start


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int = 15) -> dict[str, list[float]]:
    """Seconds of each call in each round, behind one that does not count."""
    for call in calls.values():
        call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(clock(call))
    return found


def ratio(found: dict[str, list[float]], a: str, b: str) -> float:
    """Median over the rounds of how many times as long one takes as another."""
    return statistics.median(x / y for x, y in zip(found[a], found[b], strict=True))


def projections(model: nn.Module) -> list[nn.Module]:
    """The layers that are walked."""
    return [m for name, m in model.named_modules() if name.endswith("_proj")]


def cell(model: nn.Module, text: dict[str, Tensor], layer: nn.Module) -> None:
    """One (projection, level, draw) of the loop: the perplexity of all windows, eight a pass."""
    hook = layer.register_forward_hook(lambda _m, _a, y: y + 0.1 * torch.randn_like(y))
    total = 0.0
    with torch.inference_mode():
        for ids, labels in zip(text["input_ids"].split(8), text["labels"].split(8), strict=True):
            total += float(F.cross_entropy(model(ids).flatten(0, 1), labels.flatten(), reduction="sum"))
    hook.remove()
    math.exp(total / text["labels"].numel())


def walked(model: nn.Module, text: dict[str, Tensor], block: int, **more: Any) -> nk.Study:
    """A walk of a block's projections."""
    return nk.walk(
        model, text, noise=nk.Noise(add=1.0), seed=1, sites=f"model.layers.{block}.{WHERE}", metric="perplexity",
        rows=nk.TokenRows(WINDOW), **more,
    )  # fmt: skip


def precise(study: nk.Study) -> float:
    """Windows of the loop's grid at which it would know the answers as well as a search, the mean over the sites: two
    of its levels lie about an answer, and they and their draws need as many evaluations as the search made within a
    quarter of it."""
    found = []
    for point in study.midpoints():
        near = [r for r in study.records if r.site == point.site and abs(math.log(r.level / point.level)) < 0.25]
        found.append(sum(r.rows for r in near) / (2 * DRAWS))
    return statistics.mean(found)


def walks(model: Llama, text: dict[str, Tensor], blocks: Sequence[int], windows: int) -> None:
    """The first table: of each block, the walk of some windows, the search in all, and the loop around both."""
    some = {name: values[:windows] for name, values in text.items()}
    layers = [m for b in blocks for m in projections(model.model.layers[b])]  # type: ignore[arg-type]
    cell(model, some, layers[0])
    clocks: dict[str, list[float]] = {"grid": [], "search": [], "loop": []}
    checks, through = list[float](), Check.through

    def timed(*args: Any) -> Any:
        start = time.process_time()
        found = through(*args)
        checks.append(time.process_time() - start)
        return found

    Check.through = timed  # type: ignore[method-assign]
    wanted, spent, wide = [], [], []
    for block in blocks:
        clocks["loop"] += [clock(lambda layer=layer: cell(model, some, layer)) / windows for layer in layers]  # type: ignore[misc]
        start = time.process_time()
        walked(model, some, block, levels=LEVELS, draws=DRAWS)
        between = time.process_time()
        study = walked(model, text, block, at=nk.Ratio(1.05))
        clocks["grid"].append(between - start)
        clocks["search"].append(time.process_time() - between)
        clocks["loop"] += [clock(lambda layer=layer: cell(model, some, layer)) / windows for layer in layers]  # type: ignore[misc]
        points = study.midpoints()
        wide += [max(p.high / p.level, p.level / p.low) - 1 for p in points]
        spent.append(sum(r.rows for r in study.records) / len(points))
        wanted.append(precise(study))
    window, sites = statistics.median(clocks["loop"]), len(layers)
    cells, all_windows = len(LEVELS) * DRAWS * sites, len(text["labels"])
    grid, search, equal = sum(clocks["grid"]), sum(clocks["search"]), statistics.mean(wanted)
    print(f"\n{sites} projections, blocks {list(blocks)}; a window of the loop takes {1e3 * window:.1f} ms\n")
    print("| what | windows | loop s | ours s | times as fast |\n|---|---:|---:|---:|---:|")
    for what, count, ours in (
        ("grid", windows, grid),
        ("grid, without what holds the engines against each other", windows, grid - sum(checks[::2])),
        ("question, against the grid on all of the text", all_windows, search),
        ("question, against a grid that is as precise", equal, search),
        ("question, without the check, against a grid that is as precise", equal, search - sum(checks[1::2])),
    ):
        loop = cells * count * window
        print(f"| {what} | {count:.0f} | {loop:.1f} | {ours:.1f} | {loop / ours:.1f} |")
    Check.through = through  # type: ignore[method-assign]
    print(f"\nevaluations of a search: {statistics.mean(spent):.0f}; half-width {100 * statistics.median(wide):.1f} %")


class Noisy:
    """A model under noise at its projections, of tokens or of rows."""

    def __init__(self, model: nn.Module, noise: nk.Noise, ids: Tensor, tokens: bool) -> None:
        nk.inject(model, noise, where=WHERE, example_input=ids)
        self.model, self.ids = model, ids
        self.rows: Any = nk.TokenRows(WINDOW, range(len(ids))) if tokens else list(range(len(ids)))

    def __call__(self) -> None:
        with nk.noise_state(self.model, seed=1, rows=self.rows), torch.inference_mode():
            self.model(self.ids)


def costs() -> None:
    """The second table: of a pass of eight windows."""
    print("\n| model | clean ms | rows | tokens | tokens / rows | rms / absolute |\n|---|---:|---:|---:|---:|---:|")
    for width, blocks in ((192, 8), (256, 4), (512, 4), (1024, 2)):
        sizes = LlamaSizes(width=width, blocks=blocks, heads=width // 32, hidden=width * 8 // 3 // 32 * 32)
        ids = torch.randint(sizes.vocabulary, (8, WINDOW), generator=torch.Generator().manual_seed(0))

        def copy(sizes: LlamaSizes = sizes) -> nn.Module:
            torch.manual_seed(0)
            return Llama(sizes).eval()

        clean = copy()
        absolute, rms = nk.Noise(add=0.1), nk.Noise(add=0.1, relative="rms")

        def still(clean: nn.Module = clean, ids: Tensor = ids) -> None:
            with torch.inference_mode():
                clean(ids)

        found = interleaved(
            {"clean": still, "rows": Noisy(copy(), absolute, ids, False), "tokens": Noisy(copy(), absolute, ids, True),
             "rms": Noisy(copy(), rms, ids, True)}, ROUNDS,
        )  # fmt: skip
        over = [ratio(found, a, "clean") for a in ("rows", "tokens")]
        both = [ratio(found, *pair) for pair in (("tokens", "rows"), ("rms", "tokens"))]
        clean_ms = 1e3 * statistics.median(found["clean"])
        print(f"| {blocks} blocks of {width} | {clean_ms:.0f} | {over[0]:.2f} | {over[1]:.2f} | {both[0]:.2f} "
              f"| {both[1]:.2f} |")  # fmt: skip


def recording() -> None:
    """The third table: the shared engine's recording, behind one that does not count."""
    print("\n| 12 blocks of | s |\n|---|---:|")
    for width in (192, 768):
        model = Llama(LlamaSizes(width=width, blocks=12, heads=width // 32, hidden=width * 8 // 3)).eval()
        ids = torch.zeros(4, WINDOW, dtype=torch.int64)
        with nk.inject(model, None, example_input=ids) as injected, torch.inference_mode():
            took = [clock(lambda injected=injected, ids=ids: record_tape(injected, ids)) for _ in range(2)]  # type: ignore[misc]
        print(f"| {width} | {took[-1]:.2f} |")


def main() -> None:
    """Prints all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500, help="of the model's training")
    parser.add_argument("--blocks", type=int, nargs="+", default=[0, 7], help="walked; the ends have the mean of all")
    parser.add_argument("--windows", type=int, default=32, help="of 128 tokens, of the grid")
    parser.add_argument("--text", type=int, default=256, help="windows that a search may look at")
    parser.add_argument("--only", nargs="+", choices=list(TABLES), default=list(TABLES))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for table in asked.only:
        TABLES[table](asked)


def _walks(asked: argparse.Namespace) -> None:
    model, tokenizer = language(steps=asked.steps)
    text = nk.tokens(kjv("test"), tokenizer, length=WINDOW)
    some = {name: values[: asked.text] for name, values in text.items()}
    walks(model, some, asked.blocks, asked.windows)


TABLES: dict[str, Callable[[argparse.Namespace], None]] = {
    "costs": lambda asked: costs(),
    "recording": lambda asked: recording(),
    "walks": _walks,
}

if __name__ == "__main__":
    main()
