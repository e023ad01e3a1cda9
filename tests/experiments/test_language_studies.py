"""Studies of a language model against loops over `inject`; what recording and memory of larger ones take."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import noisykernels as nk
from noisykernels._graph.recorder import record_tape
from noisykernels._util.inputs import Call, Inputs
from noisykernels.datasets import Tokens
from noisykernels.experiments import order_sensitivity
from noisykernels.zoo import Llama, LlamaSizes, language

TEXT = ["In the beginning was the word, and the word was read by those who had eyes to read it. " * 20]
SIZES = LlamaSizes(vocabulary=270, width=24, blocks=2, heads=4, shared=2, hidden=32)
PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
HARDWARE = [nk.WeightNoise(add=0.05, relative="channel")]

pytestmark = pytest.mark.usefixtures("one_thread")


class Reader(NamedTuple):
    """A model that has learnt a little, and windows of its text."""

    model: Llama
    data: Tokens


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    model, tokenizer = language(SIZES, TEXT, steps=30, length=16, lr=1e-2, cache=tmp_path_factory.mktemp("cache"))
    return Reader(model, nk.tokens(TEXT, tokenizer, length=16).first(6))


def perplexity(scores: Tensor, data: Tokens) -> float:
    return math.exp(torch.nn.functional.cross_entropy(scores.flatten(0, -2), data["labels"].flatten()))


def by_loop(reader: Reader, draw: int, noise: Any = None, **placed: Any) -> Tensor:
    """Scores of the injected model under a draw."""
    with nk.inject(reader.model, noise, **placed), nk.noise_state(reader.model, seed=1, draws=[draw]), torch.no_grad():
        return reader.model(reader.data["input_ids"])


def test_a_walk_of_all_projections_is_a_loop(reader: Reader) -> None:
    asked = dict(noise=nk.Noise(add=1.0), levels=[0.1, 1.0], draws=2, seed=1, metric="perplexity", sites="*_proj")
    study = nk.walk(reader.model, reader.data, compute=nk.Compute(engine="shared"), **asked)
    assert {r.site.rpartition(":")[0].rpartition(".")[2] for r in study.records} == PROJECTIONS
    assert len(study.records) == 14 * 4 and study.meta.plan["verification"]["differing"] == {}
    for r in study.records:
        with torch.no_grad():
            scores = by_loop(reader, r.draw, nk.Noise(add=r.level), where=r.site)
        assert r.value == pytest.approx(perplexity(scores, reader.data), rel=1e-4)


def test_in_half_precision_it_is_a_loop_too(reader: Reader) -> None:
    """Scores of bfloat16 have steps of 2^-8 of themselves; contractions of other sizes may round to the next one."""
    half = Reader(copy.deepcopy(reader.model).bfloat16(), reader.data)
    with torch.no_grad():
        wide, scores = reader.model(reader.data["input_ids"]), by_loop(half, 0)
    assert scores.dtype == torch.bfloat16
    assert float((scores - wide).abs().max()) < 2**-4 * float(wide.abs().max())  # some sixteen roundings deep
    most = 2 * 2**-8 * float(wide.abs().max())  # what a token's loss moves by if all its scores are a step apart
    asked = dict(noise=nk.Noise(add=1.0), levels=[0.1, 1.0], draws=2, seed=1, metric="perplexity", sites="*_proj")
    for engine in ("plain", "shared"):
        study = nk.walk(*half, compute=nk.Compute(engine=engine), **asked)
        for r in study.records:
            scores = by_loop(half, r.draw, nk.Noise(add=r.level), where=r.site)
            assert abs(math.log(r.value / perplexity(scores.float(), half.data))) < most


def test_a_walk_of_weights_is_a_loop(reader: Reader) -> None:
    sites = ["*.0.self_attn.k_proj", "*.1.mlp.down_proj", "lm_head"]
    noise = nk.WeightNoise(add=1.0, relative="layer")
    asked = dict(levels=[0.05], draws=2, seed=1, metric="perplexity", sites=sites, target="weight")
    study = nk.walk(reader.model, reader.data, noise=noise, **asked)
    assert len(study.records) == 6
    for r in study.records:
        hardware = {r.site: [nk.WeightNoise(add=r.level, relative="layer")]}
        assert r.value == pytest.approx(perplexity(by_loop(reader, r.draw, hardware=hardware), reader.data), rel=1e-4)


def test_chips_and_the_mean_of_probabilities_are_loops(reader: Reader) -> None:
    model, data = reader
    found = nk.chips(model, data, hardware=HARDWARE, draws=3, seed=1, metric="perplexity")
    scores = [by_loop(reader, d, hardware=HARDWARE) for d in range(3)]
    np.testing.assert_allclose(found.values, [perplexity(s, data) for s in scores], rtol=1e-4)
    votes = nk.vote(
        model, data, noise=None, hardware=HARDWARE, draws=3, seed=1, metric="perplexity", kinds="probability"
    )
    mean = torch.stack([s.double().softmax(-1) for s in scores]).mean(0).log()
    assert votes.curves["probability"].values[-1] == pytest.approx(perplexity(mean, data), rel=1e-4)


def test_divergence_from_the_clean_model_needs_no_labels(reader: Reader) -> None:
    model, data = reader
    asked = dict(noise=nk.Noise(add=1.0), metric="kl", seed=1, sites=["*.1.*.o_proj"], at=nk.Value(0.05))
    study = nk.walk(model, {"input_ids": data["input_ids"]}, **asked, search=nk.Search(rel_ci=0.3))
    (found,) = study.midpoints()
    assert found.status == "ok"
    values = []
    for draw in range(20):  # other noise than that of the search
        with nk.inject(model, nk.Noise(add=found.level), where="model.layers.1.self_attn.o_proj"), torch.no_grad():
            with nk.noise_state(model, seed=2, draws=[draw]):
                noisy = model(data["input_ids"]).log_softmax(-1)
        with torch.no_grad():
            clean = model(data["input_ids"]).log_softmax(-1)
        values.append(float((clean.exp() * (clean - noisy)).sum(-1).mean()))
    assert np.mean(values) == pytest.approx(0.05, rel=0.5)


PLACED: dict[str, Callable[[], dict[str, Any]]] = {
    "converters": lambda: dict(hardware=[nk.hardware.DAC(8, "row"), nk.hardware.ADC(10, 4.0)]),
    "pairs": lambda: dict(hardware=[nk.hardware.DifferentialPair(0.01, levels=16)]),
    "pcm": lambda: dict(hardware=[nk.hardware.PCM()]),
    "reading": lambda: dict(hardware=[nk.MacNoise(read=0.01)]),
    "format": lambda: dict(arithmetic=nk.Serial("M7E6")),
}


@pytest.mark.parametrize("what", PLACED)
def test_hardware_and_arithmetic_of_all_projections(reader: Reader, what: str) -> None:
    with torch.no_grad():
        clean = reader.model(reader.data["input_ids"])
    found = by_loop(reader, 0, **PLACED[what]())
    assert not torch.equal(found, clean) and 0.9 < perplexity(found, reader.data) / perplexity(clean, reader.data) < 1.5


def quantised(x: Tensor, bits: int, limit: Tensor | float) -> Tensor:
    step = limit / (2 ** (bits - 1) - 1)
    return step * (x / step).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def by_hand(reader: Reader, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Scores where each projection's product is another function of input and weight."""

    def instead(layer: torch.nn.Module, x: Any, _: Tensor) -> Tensor:
        return product(x[0], layer.weight)

    layers = [m for name, m in reader.model.named_modules() if name.endswith("_proj")]
    assert len(layers) == 14
    handles = [layer.register_forward_hook(instead) for layer in layers]
    with torch.no_grad():
        scores = reader.model(reader.data["input_ids"])
    for handle in handles:
        handle.remove()
    return scores


def test_converters_and_formats_are_written_out(reader: Reader) -> None:
    def converted(x: Tensor, weight: Tensor) -> Tensor:
        limit = x.abs().amax((1, 2), keepdim=True)  # of a window
        return quantised(quantised(x, 8, limit) @ weight.T, 10, 4.0)

    def truncated(x: Tensor) -> Tensor:  # to seven bits of mantissa
        return (x.contiguous().view(torch.int32) & -(1 << 16)).view(torch.float32)

    def summed(x: Tensor, weight: Tensor) -> Tensor:
        total = torch.zeros(*x.shape[:-1], len(weight))
        for k in range(x.shape[-1]):
            total = truncated(total + truncated(truncated(x[..., k, None]) * truncated(weight[:, k])))
        return total

    converters = {"*_proj": [nk.hardware.DAC(8, "row"), nk.hardware.ADC(10, 4.0)]}
    found, clean = by_loop(reader, 0, hardware=converters), by_loop(reader, 0)
    moved = (found - clean).abs().mean()  # a sum that was added up otherwise may round to the code beside
    assert 0 < moved and (found - by_hand(reader, converted)).abs().mean() < 0.02 * moved
    found = by_loop(reader, 0, hardware={"*_proj": [nk.Serial("M7E8")]})
    torch.testing.assert_close(found, by_hand(reader, summed), rtol=1e-5, atol=1e-5)


def test_orders_of_sums(reader: Reader) -> None:
    found = order_sensitivity(
        reader.model, reader.data.first(2), nk.Serial("M4E5"), permutations=2, seed=1, metric="perplexity",
        sites="*.1.*_proj",
    )  # fmt: skip
    assert len(found.layers) == 7


def test_recording_twelve_blocks_takes_less_than_three_seconds() -> None:
    model, ids = Llama(LlamaSizes(blocks=12)).eval(), torch.randint(2048, (4, 32))
    with nk.inject(model, nk.Noise(add=1.0)), torch.inference_mode():
        start = time.process_time()
        tape = record_tape(model, Inputs.of({"input_ids": ids}), Call("walk"))
        assert time.process_time() - start < 3  # of one core
    assert len(tape.sites) == 12 * 9 + 1


MEMORY = """
import resource
import torch, noisykernels as nk
from noisykernels.zoo import Llama, LlamaSizes
model = Llama(LlamaSizes(width=512, heads=8, shared=4, hidden=1536)).eval()
assert sum(p.numel() for p in model.parameters()) * 4 > 100 << 20
data = {"input_ids": torch.randint(2048, (12, 64)), "labels": torch.randint(2048, (12, 64))}
with torch.inference_mode():
    model(data["input_ids"][:2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
nk.walk(model, data, noise=nk.Noise(add=1.0), levels=[0.1, 1.0], draws=1, seed=1, metric="perplexity",
        sites="model.layers.7.mlp.*_proj", compute=nk.Compute(memory=64 << 20, engine="shared"))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.full
def test_the_walk_of_a_model_of_100_megabytes_stays_within_its_memory() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64 + 48  # MiB beyond what a forward takes
