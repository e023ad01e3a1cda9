"""The page docs/results/language.md, of what `bench/language.py` has kept: tables, and what others said of noise in
language models, held against them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from noisykernels.stats.intervals import t_for

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FIRST, LATER = KINDS[:3], KINDS[4:]  # Q, K and V; the gated layers
UNITS = ("outputs, rms", "outputs, max", "inputs, rms", "weights, channel", "weights, layer", "caches, rms")
NAMES = {"llama": "the zoo's Llama", "smollm2": "SmolLM2-135M-Instruct"}
SIZES = {
    "llama": "3.5 million parameters, 8 blocks, trained for 1,500 steps",
    "smollm2": "134.5 million parameters, 30 blocks, weights of four bits (Q4_1) read as float32",
}
TOKENS = {"llama": 128, "smollm2": 64}  # of a part
CACHES = UNITS[-1]
Levels = Mapping[str, float]  # logarithms, by place

HEAD = """# Noise in language models

`python bench/language.py --out docs/results/language.md` writes this page (in the environment that `make test-models`
makes; SmolLM2 where `make smollm2` has been called).

A level is that at which the predictions of a token diverge by 0.05 nat from those without noise (5 % more perplexity
is 0.049 nat more loss). Levels are shares:

- **outputs, rms** or **max**: fresh noise on the result of a projection, in shares of the rms, or the largest
  magnitude, of the token's values there;
- **inputs, rms**: the same before the projection;
- **weights, channel** or **layer**: on the weights, drawn once, in shares of the largest magnitude of the output
  channel, or of the layer;
- **caches, rms**: on keys (behind the rotation) and values as they are written, in shares of the token's rms.

Each part of the text is a window with a draw of its own; a level is found from six, a factor of 2.5 apart, by
`nk.walk(..., metric="kl", at=nk.Value(0.05))`. What lies beyond the largest or the smallest of them counts as lying
there, and is counted below. Intervals are of 95 %, Student's over the parts: they hold what the text and the noise vary
by, not what another model would, and of twenty of them one is expected to miss. Means of levels are geometric.
"""

SETTINGS = """One draw a part, all of the model at once. MemSE puts a weight on 128 levels by rounding down, its sign
included, which moves all weights one way: its lines hold that beside the noise.
"""


class Interval(NamedTuple):
    """A mean over parts, and where it lies."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Of one number a part; one part alone bounds nothing."""
        mean = float(np.mean(values))
        if len(values) < 2:
            return cls(mean, -math.inf, math.inf)
        half = t_for(1.959964, len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
        return cls(mean, mean - half, mean + half)

    def factor(self) -> str:
        """As a number that was logarithmised."""
        return f"{_brief(self.mean)} ({_brief(self.low)} .. {_brief(self.high)})"


def _brief(log: float) -> str:
    value = math.exp(min(log, 700.0))
    return f"{value:.0f}" if 100 <= value < 1e4 else "inf" if value > 1e100 else f"{value:.2g}"


@dataclass
class Model:
    """What was found of one model: logarithms of levels by unit and part, the same as noise of the results."""

    name: str
    about: Mapping[str, float]
    levels: dict[str, list[Levels]]
    at_results: dict[str, list[Levels]]
    bounds: dict[str, tuple[int, int, int]]  # of each unit: levels, those beyond all, those below all
    settings: dict[str, list[tuple[float, float]]]

    @classmethod
    def of(cls, found: Mapping[str, Any], name: str) -> Model:
        """From what was kept."""
        mine = {key.removeprefix(f"{name}/"): value for key, value in found.items() if key.startswith(f"{name}/")}
        model = cls(name, mine["about"], {}, {}, {}, {})
        for unit in UNITS:
            parts = {int(key.rpartition("/")[2]): v for key, v in mine.items() if key.startswith(f"levels/{unit}/")}
            if not parts:
                continue
            model.levels[unit] = [{p: math.log(v) for p, (v, _) in parts[k].items()} for k in sorted(parts)]
            said = [status for some in parts.values() for _, status in some.values()]
            model.bounds[unit] = len(said), said.count("none"), said.count("below")
            if unit != CACHES:
                ratios = [mine[f"ratios/{k}"] for k in sorted(parts)]
                model.at_results[unit] = [
                    {place: v + math.log(ratio[place][unit]) for place, v in some.items()}
                    for some, ratio in zip(model.levels[unit], ratios, strict=True)
                ]
        for key, value in mine.items():
            if key.startswith("under/"):
                model.settings.setdefault(key.split("/")[1], []).append(tuple(value))
        return model


def parts_of(place: str) -> tuple[int | None, str | None]:
    """Block and kind of a place, of which one may be open."""
    block, _, kind = place.rpartition(".")
    if block or place.isdecimal():
        return int(block or place), kind if block else None
    return None, place


def mean_of(levels: Levels, *, kinds: Sequence[str] | None = None, block: int | None = None) -> float:
    """Of the places of these kinds, or of this block."""
    some = []
    for place, value in levels.items():
        at, kind = parts_of(place)
        if (kinds is None or kind in kinds) and (block is None or at == block):
            some.append(value)
    return float(np.mean(some)) if some else math.nan


def blocks_of(levels: Levels) -> list[int]:
    """Those that are places, or hold some."""
    return sorted({at for at, _ in map(parts_of, levels) if at is not None})


def later_than_first(levels: Levels) -> float:
    """By how much gated layers stand more than Q, K and V."""
    return mean_of(levels, kinds=LATER) - mean_of(levels, kinds=FIRST)


def fall_with_depth(levels: Levels) -> float:
    """By how much less the last block stands than the first, by a line through all."""
    blocks = blocks_of(levels)
    at = np.array(blocks) / max(blocks)
    return -float(np.polyfit(at, [mean_of(levels, block=b) for b in blocks], 1)[0])


def shallow_less(levels: Levels) -> float:
    """By how much the first quarter of the blocks stands less than the rest."""
    blocks = blocks_of(levels)
    edge = (max(blocks) + 1) / 4
    means = {b: mean_of(levels, block=b) for b in blocks}
    return float(
        np.mean([v for b, v in means.items() if b >= edge]) - np.mean([v for b, v in means.items() if b < edge])
    )


def first_least(levels: Levels) -> float:
    """By how much the first block stands less than the others."""
    blocks = blocks_of(levels)
    return float(np.mean([mean_of(levels, block=b) for b in blocks[1:]])) - mean_of(levels, block=blocks[0])


def _whole(levels: Levels) -> float:
    return float(np.mean(list(levels.values())))


class Claim(NamedTuple):
    """What was said, by whom, and by what it is measured: logarithms of a factor that is above 1 if it is so."""

    text: str
    source: str
    factor: str
    measured: Callable[[Model], dict[str, list[float]]]


def in_each_unit(function: Callable[[Levels], float]) -> Callable[[Model], dict[str, list[float]]]:
    """A number of each part, in each unit of projections."""
    return lambda model: {u: [function(p) for p in parts] for u, parts in model.levels.items() if u != CACHES}


def weights_against(other: str) -> Callable[[Model], dict[str, list[float]]]:
    """Levels of weights by those of outputs or inputs: as they are given, and as noise of the results."""

    def measured(model: Model) -> dict[str, list[float]]:
        found = {}
        for unit in (u for u in model.levels if u.startswith("weights")):
            for against in (u for u in model.levels if u.startswith(other)):
                pairs = zip(model.levels[unit], model.levels[against], strict=True)
                found[f"{unit} / {against}"] = [_whole(a) - _whole(b) for a, b in pairs]
        for against in (u for u in model.levels if u.startswith(other)):
            pairs = zip(model.at_results["weights, channel"], model.at_results[against], strict=True)
            found[f"as noise of the results, {against}"] = [_whole(a) - _whole(b) for a, b in pairs]
        return found

    return measured


def caches_against(model: Model) -> dict[str, list[float]]:
    """Levels of caches by those of the projections that make them, and of all."""
    pairs = list(zip(model.levels[CACHES], model.levels["outputs, rms"], strict=True))
    made = {"key": "k_proj", "value": "v_proj"}
    found = {"all / all projections": [_whole(a) - mean_of(b, kinds=KINDS) for a, b in pairs]}
    return found | {
        f"{cache} / {kind}": [mean_of(a, kinds=[cache]) - mean_of(b, kinds=[kind]) for a, b in pairs]
        for cache, kind in made.items()
    }


CLAIMS = [
    Claim("weights stand more noise than outputs", "NORA (DATE 2025)", "level of weights / of outputs",
          weights_against("outputs")),
    Claim("weights stand more noise than inputs", "NORA (DATE 2025)", "level of weights / of inputs",
          weights_against("inputs")),
    Claim("Q, K, V are the weakest, feed-forward layers robust", "Rahman, Qian (ACL 2026, short 21)",
          "level of gate, up, down / of q, k, v", in_each_unit(later_than_first)),
    Claim("higher layers are weaker", "Rahman, Qian (ACL 2026, short 21)", "level of the first block / of the last",
          in_each_unit(fall_with_depth)),
    Claim("shallow layers are where redundancy helps most", "LLMs on memristors (2026)",
          "level of the other blocks / of the first quarter", in_each_unit(shallow_less)),
    Claim("the first block is the weakest", "vision transformers under bit flips (Electronics 14:2418)",
          "level of the other blocks / of the first", in_each_unit(first_least)),
    Claim("feed-forward layers are the weakest", "vision transformers under bit flips (Electronics 14:2418)",
          "level of q, k, v / of gate, up, down", in_each_unit(lambda levels: -later_than_first(levels))),
    Claim("caches are robust", "KV cache study (2026)", "level of caches / of projections", caches_against),
]  # fmt: skip


def verdict(intervals: Sequence[Interval]) -> str:
    """What they say together."""
    yes, no = sum(i.low > 0 for i in intervals), sum(i.high < 0 for i in intervals)
    if yes and no:
        return "depends on the unit"
    if not yes and not no:
        return "cannot be told"
    word = "agrees" if yes else "does not"
    told = yes + no
    return word if told == len(intervals) else f"{word}, as far as can be told ({told} of {len(intervals)} units)"


def claims(models: Sequence[Model]) -> str:
    """The table of what was claimed."""
    lines = [
        "| claim | factor, above 1 if it is so | model | in which unit: factor (95 %) | found |",
        "|---|---|---|---|---|",
    ]
    for claim in CLAIMS:
        for model in models:
            found = {unit: Interval.of(values) for unit, values in claim.measured(model).items()}
            cells = "; ".join(f"{unit}: {i.factor()}" for unit, i in found.items())
            said = f"{claim.text}: {claim.source} | {claim.factor} | {NAMES[model.name]}"
            together = verdict([*found.values()]) if found else "not measured"
            lines.append(f"| {said} | {cells} | **{together}** |")
    return "\n".join(lines)


def table(model: Model, rows: Mapping[str, Callable[[Levels], float]], units: Sequence[str]) -> str:
    """Levels by unit, of what rows mean."""
    lines = [f"| | {' | '.join(units)} |", f"|---|{'---|' * len(units)}"]
    for name, function in rows.items():
        cells = [Interval.of([function(part) for part in model.levels[u]]) for u in units]
        lines.append(f"| {name} | {' | '.join(i.factor() if not math.isnan(i.mean) else '' for i in cells)} |")
    return "\n".join(lines)


def of_model(model: Model) -> str:
    """All that is said of one."""
    units = [u for u in model.levels if u != CACHES]
    first = model.levels[units[0]][0]
    kinds = {kind: lambda levels, kind=kind: mean_of(levels, kinds=[kind]) for kind in KINDS}
    blocks = {f"block {b}": lambda levels, b=b: mean_of(levels, block=b) for b in blocks_of(first)}
    caches = {c: lambda levels, c=c: mean_of(levels, kinds=[c]) for c in ("key", "value")}
    text = [f"## {NAMES[model.name]}\n", f"{SIZES[model.name][:1].upper()}{SIZES[model.name][1:]}.\n"]
    if model.about:
        a = model.about
        text.append(
            f"Perplexity {a['test']:.1f} on chapters that it has not seen, {a['train']:.1f} on those that it has; "
            f"{a['pairs']:.0f} by pairs of tokens, {a['tokens alone']:.0f} by tokens alone.\n"
        )
    together = any(block is None for block, _ in map(parts_of, first))
    how = (
        "All projections of a kind, or of one block, are noisy together; what is said of depth rests on these blocks."
        if together
        else "One projection is noisy at a time; rows are means over those of a kind, or of a block."
    )
    beyond = "; ".join(f"{u}: {over} and {under} of {count}" for u, (count, over, under) in model.bounds.items())
    text.append(
        f"{how} {len(model.levels[units[0]])} parts of {TOKENS[model.name]} tokens of the King James Bible. Beyond the "
        f"largest and below the smallest level: {beyond}.\n"
    )
    text += [table(model, kinds | blocks, units), ""]
    if CACHES in model.levels:
        text += [table(model, caches, [CACHES]), ""]
    return "\n".join(text)


def settings(models: Sequence[Model]) -> str:
    """What divergence and perplexity are under published settings."""
    names = dict.fromkeys(name for model in models for name in model.settings)
    heads = [f"{NAMES[m.name]}: {what}" for m in models for what in ("parts", "divergence, nat", "perplexity times")]
    lines = [f"| all projections at once | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for name in names:
        cells = []
        for model in models:
            parts = model.settings.get(name, [])
            cells.append(str(len(parts)))
            cells += [Interval.of([math.log(v[k]) for v in parts]).factor() if parts else "" for k in (0, 1)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(found: Mapping[str, Any]) -> str:
    """All of it."""
    models = [Model.of(found, name) for name in NAMES if f"{name}/about" in found]
    without = "".join(f"\nNot measured: {who}.\n" for name, who in NAMES.items() if f"{name}/about" not in found)
    text = [HEAD + without, *map(of_model, models), "## Published settings\n", SETTINGS, settings(models), ""]
    return "\n".join([*text, "## What was claimed\n", claims(models), ""])
