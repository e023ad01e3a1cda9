"""How much noise the projections, blocks and caches of language models stand, in several units, and how they do under
published settings: docs/results/language.md, by `python bench/language.py --out docs/results/language.md`.

Runs in the environment that `make test-models` makes, on the zoo's model and, where `make smollm2` has been called, on
SmolLM2-135M-Instruct. What is measured is kept in `--store` as it comes: a call that was stopped goes on from there,
and one with more `--parts` measures only those that are new. What the page says of it is `language_page`'s.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from language_baselines import perplexities
from language_page import KINDS, TOKENS, UNITS, page
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.datasets import kjv
from noisykernels.zoo import language, save_for_transformers

LIMIT = nk.Value(0.05)  # nat of divergence from the clean model, about what 5 % of perplexity are
STEPS = 6  # levels of a walk, a factor of 2.5 apart
HW = nk.hardware
PROJECTIONS = "*_proj"


def inside(*devices: nk.hardware.Device) -> dict[str, Any]:
    """Devices in all projections, as `inject` takes them."""
    return dict(noise=None, hardware={PROJECTIONS: list(devices)})


def behind(relative: str, where: str = PROJECTIONS) -> dict[str, Any]:
    """Noise of a twentieth of a token's rms or max."""
    return dict(noise=nk.Noise(add=0.05, relative=relative), where=where)


SETTINGS = {
    "AFM in training: weights, 3 % of the channel's max": inside(*nk.presets.afm("training")),
    "AFM in evaluation: weights, 5 % of the channel's max": inside(*nk.presets.afm()),
    "AFM in evaluation, tiles of 512": inside(*nk.presets.afm(tiles=True)),
    "Joshi: weights, 2 % of the layer's max": inside(*nk.presets.joshi(0.02)),
    "Joshi: weights, 5 % of the layer's max": inside(*nk.presets.joshi(0.05)),
    "aihwkit's PCM, 20 s after programming": inside(*nk.presets.aihwkit_pcm()),
    "aihwkit's PCM, a day later": inside(*nk.presets.aihwkit_pcm(86400.0)),
    "MemSE: pairs, 1 % of the largest conductance": inside(*nk.presets.memse(0.001)),
    "MemSE: pairs, 10 % of the largest conductance": inside(*nk.presets.memse()),
    "outputs, 5 % of the token's rms": behind("rms"),
    "outputs, 5 % of the token's max": behind("max"),
    "inputs, 5 % of the token's rms": inside(HW.InputNoise(add=0.05, relative="rms")),
    "inputs, 5 % of the token's max": inside(HW.InputNoise(add=0.05, relative="max")),
    "converters of 8 bits at inputs and outputs": inside(HW.DAC(8, "row"), HW.ADC(8, "row")),
    "converters of 6 bits at inputs and outputs": inside(HW.DAC(6, "row"), HW.ADC(6, "row")),
    "keys and values, 5 % of the token's rms": behind("rms", "cache:*"),
}


@dataclass
class Reader:
    """A model, the text that it is asked, the units in which it is walked, and places at which it is noisy: names, and
    the sites that each means."""

    model: nn.Module
    text: nk.datasets.Tokens
    units: Sequence[str]
    least: float  # level of a walk, in shares of the result's rms
    places: dict[str, list[str]]
    caches: dict[str, list[str]]
    about: dict[str, float] = field(default_factory=dict)

    @property
    def rows(self) -> nk.TokenRows:
        """Whose noise it is."""
        return nk.TokenRows(self.text["labels"].shape[1])

    def part(self, k: int) -> dict[str, Tensor]:
        """A window of the tests' text, from another place for each part."""
        return {name: values[[k * 37 % len(values)]] for name, values in self.text.items()}


def of_folder(folder: Path) -> tuple[nn.Module, Any]:
    """Model and tokenizer of a folder of transformers, whose caches are sites."""
    transformers = importlib.import_module("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    model.config.use_cache = False
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def small() -> Reader:
    """The zoo's model, as transformers has it; each projection is a place."""
    own, pairs = language()
    with tempfile.TemporaryDirectory() as folder:
        save_for_transformers(folder, own, pairs)
        model, tokenizer = of_folder(Path(folder))
    blocks = range(own.sizes.blocks)
    places = {f"{k}.{kind}": [f"model.layers.{k}.*.{kind}"] for k in blocks for kind in KINDS}
    caches = {f"{k}.{kind}": [f"cache:{kind}#{k}"] for k in blocks for kind in ("key", "value")}
    text = nk.tokens(kjv("test"), tokenizer, length=TOKENS["llama"])
    return Reader(model, text, UNITS, 0.064, places, caches, perplexities(own, pairs))


def smollm2(folder: Path) -> Reader:
    """The real one: each kind of projection in all blocks at once, and all projections of some blocks."""
    model, tokenizer = of_folder(folder)
    last = model.config.num_hidden_layers - 1
    kinds = {kind: [f"*.{kind}"] for kind in KINDS}
    blocks = {f"{k}": [f"model.layers.{k}.*_proj"] for k in (0, last // 2, last)}
    caches = {kind: [f"cache:{kind}#*"] for kind in ("key", "value")}
    units = [unit for unit in UNITS if unit not in ("inputs, rms", "weights, layer")]  # a pass takes a while
    return Reader(
        model, nk.tokens(kjv("test"), tokenizer, length=TOKENS["smollm2"]), units, 0.01, kinds | blocks, caches
    )


@contextmanager
def hooked(model: nn.Module, see: Callable[[str, nn.Linear, Tensor, Tensor], None]) -> Iterator[None]:
    """Shows each projection's name, layer, input and result."""
    handles = [
        module.register_forward_hook(lambda m, x, y, name=name: see(name, m, x[0], y))
        for name, module in model.named_modules()
        if name.endswith(KINDS)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def ratios(reader: Reader, part: int) -> dict[str, dict[str, float]]:
    """For each place and unit, the noise of the results, as a share of their rms, that level 1 makes there."""
    found: dict[str, dict[str, float]] = {}

    def see(name: str, layer: nn.Linear, x: Tensor, y: Tensor) -> None:
        w, size = layer.weight.detach(), float(y.square().mean())
        inputs = float(x.square().sum(-1).mean())
        powers = {
            "outputs, rms": size,
            "outputs, max": float(y.abs().amax(-1).square().mean()),
            "inputs, rms": inputs / x.shape[-1] * float(w.square().sum(1).mean()),
            "weights, channel": inputs * float(w.abs().amax(1).square().mean()),
            "weights, layer": inputs * float(w.abs().max()) ** 2,
        }
        found[name] = {unit: math.sqrt(power / size) for unit, power in powers.items()}

    with torch.no_grad(), hooked(reader.model, see):
        reader.model(reader.part(part)["input_ids"])
    whole = {}
    for place in reader.places:
        mine = [r for name, r in found.items() if _lies(name, place)]
        whole[place] = {unit: math.exp(sum(math.log(r[unit]) for r in mine) / len(mine)) for unit in mine[0]}
    return whole


def _lies(name: str, place: str) -> bool:
    """Whether a projection belongs to a place, ``3.q_proj``, ``q_proj`` or ``3``."""
    block, kind = name.split(".")[2], name.rpartition(".")[2]
    return place in (f"{block}.{kind}", kind, block)


def walked(reader: Reader, unit: str, part: int) -> dict[str, tuple[float, str]]:
    """For each place, the level at which the divergence passes the limit, and how it was found.

    A level is searched around the one that makes as much noise on the results as others do, place by place."""
    caches = unit == "caches, rms"
    places = reader.caches if caches else reader.places
    scale = dict.fromkeys(places, 1.0) if caches else {p: r[unit] for p, r in ratios(reader, part).items()}
    base = math.exp(sum(map(math.log, scale.values())) / len(scale))
    levels = [reader.least * 2.5**k / base for k in range(STEPS)]
    data = {"input_ids": reader.part(part)["input_ids"]}
    asked: dict[str, Any] = dict(seed=part, draws=1, metric="kl", at=LIMIT, groups=places)
    if unit == "inputs, rms":
        study = nk.walk_parameter(
            reader.model, data, lambda a: [HW.InputNoise(add=a, relative="rms")], levels, larger="worse",
            name="share of the inputs' rms", rows=reader.rows, **asked,
        )  # fmt: skip
    elif unit.startswith("weights"):
        noise = nk.WeightNoise(add=1.0, relative=unit.partition(", ")[2])
        study = nk.walk(reader.model, data, noise=noise, target="weight", levels=levels, **asked)
    else:
        noise = nk.Noise(add=1.0, relative=unit.partition(", ")[2])
        study = nk.walk(reader.model, data, noise=noise, levels=levels, rows=reader.rows, **asked)
    ends = {"none": levels[-1], "below": levels[0]}
    return {p.site: (float(ends.get(p.status, p.level)), p.status) for p in study.midpoints()}


def under(reader: Reader, setting: dict[str, Any], part: int) -> tuple[float, float]:
    """Divergence, and what perplexity is multiplied with, of the whole model under a setting."""
    data = reader.part(part)
    ids, labels = data["input_ids"], data["labels"].flatten()
    with torch.no_grad():
        clean = reader.model(ids).logits.flatten(0, 1).log_softmax(-1)
        with nk.inject(reader.model, **setting), nk.noise_state(reader.model, seed=part, draws=[0], rows=reader.rows):
            noisy = reader.model(ids).logits.flatten(0, 1).log_softmax(-1)
    more = F.nll_loss(noisy, labels) - F.nll_loss(clean, labels)
    return float((clean.exp() * (clean - noisy)).sum(-1).mean()), math.exp(float(more))


def kept(path: Path, found: dict[str, Any], key: str, make: Callable[[], Any]) -> None:
    """Measures what is not there yet, and writes it at once."""
    if key in found:
        return
    start = time.process_time()
    found[key] = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=0))
    print(f"{key}: {time.process_time() - start:.0f} s of the processor", flush=True)


def main() -> None:
    """Measures, keeps, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("llama", "smollm2"), default=["llama", "smollm2"])
    parser.add_argument("--folder", type=Path, default=Path("results/smollm2"), help="of SmolLM2")
    parser.add_argument("--parts", type=int, default=4, help="windows, each with a draw of its own")
    parser.add_argument("--store", type=Path, default=Path("results/language.json"))
    parser.add_argument("--out", type=Path, help="the page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(options.store.read_text()) if options.store.exists() else {}
    for name in options.models:
        if name == "smollm2" and not options.folder.is_dir():
            print(f"{options.folder}: not there (make smollm2); left out")
            continue
        reader = small() if name == "llama" else smollm2(options.folder)
        kept(options.store, found, f"{name}/about", reader.about.copy)
        for part in range(options.parts):
            kept(options.store, found, f"{name}/ratios/{part}", lambda: ratios(reader, part))  # noqa: B023
            for unit in reader.units:
                kept(options.store, found, f"{name}/levels/{unit}/{part}", lambda: walked(reader, unit, part))  # noqa: B023
        for setting, placed in SETTINGS.items():
            for part in range(options.parts):
                kept(options.store, found, f"{name}/under/{setting}/{part}", lambda: under(reader, placed, part))  # noqa: B023
    text = page(found)
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    sys.modules["torchvision"] = None  # text needs none, and one of another torch fails on import
    main()
