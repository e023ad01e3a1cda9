"""LoRA on a noisy base, and weights that torchao holds as codes: what enters is what is written out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
BASE = "*base_layer*"


@pytest.fixture
def llama() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2)
    config = transformers.LlamaConfig(vocab_size=50, num_hidden_layers=2, **sizes)
    model: nn.Module = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():  # large enough for noise to show
            p.mul_(4 if p.dim() > 1 else 1)
    return model


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(50, (8, 6), generator=torch.Generator().manual_seed(1))


def adapted(llama: nn.Module) -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(2)
    model = peft.get_peft_model(copy.deepcopy(llama), peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    for name, p in model.named_parameters():
        if "lora_B" in name:  # which begin at 0
            nn.init.normal_(p, std=0.1)
    return model.eval()


def test_adapters_are_trained_on_a_noisy_base(llama: nn.Module, tokens: Tensor) -> None:
    """Only adapters learn; the gradient is that of the same noise put behind the base by hand."""
    model, layer = adapted(llama), "base_model.model.model.layers.0.mlp.down_proj"
    site = f"{layer}.base_layer:linear#0"
    (number,) = (s.id for s in nk.sites(model, tokens[:2]) if s.name == site)
    with nk.inject(model, nk.Noise(add=0.5), where=site, example_input=tokens[:2]), nk.noise_state(model, seed=3):
        model(tokens, labels=tokens).loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found and all("lora_" in name for name in found)
    by_hand = adapted(llama)
    by_hand.get_submodule(f"{layer}.base_layer").register_forward_hook(
        lambda m, given, y: nk.perturb(y, nk.Noise(add=0.5), seed=3, site=number)
    )
    by_hand(tokens, labels=tokens).loss.backward()
    wanted = {name: p.grad for name, p in by_hand.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    for name, grad in found.items():
        assert torch.allclose(grad, wanted[name], rtol=1e-4, atol=1e-6 * float(wanted[name].abs().max())), name
    clean = adapted(llama)
    clean(tokens, labels=tokens).loss.backward()
    assert any(not torch.allclose(grad, clean.get_parameter(name).grad, rtol=1e-2) for name, grad in found.items())


def test_sites_of_adapters_and_of_what_they_are_merged_into(llama: nn.Module, tokens: Tensor) -> None:
    model = adapted(llama)
    asked = dict(noise=nk.Noise(add=1.0), metric="kl", at=nk.Value(0.02), levels=[0.5, 2.0], draws=2, seed=1)
    study = nk.walk(model, {"input_ids": tokens}, sites="*layers.0.mlp.down_proj*", **asked)
    parts = [s.rpartition(":")[0].rpartition("down_proj.")[2] for s in dict.fromkeys(r.site for r in study.records)]
    assert parts == ["base_layer", "lora_A.default", "lora_B.default"]
    for r in study.records:
        with nk.inject(model, nk.Noise(add=r.level), where=r.site), nk.noise_state(model, seed=1, draws=[r.draw]):
            assert r.value == pytest.approx(divergence(model, tokens), rel=1e-3)
    whole = model.merge_and_unload()
    merged = nk.walk(whole, {"input_ids": tokens}, sites="*layers.0.mlp.down_proj*", **asked)
    assert {r.site for r in merged.records} == {"model.layers.0.mlp.down_proj:linear#0"}


def divergence(model: Any, tokens: Tensor) -> float:
    """Of the outputs from those without noise."""
    with torch.no_grad():
        noisy = model(tokens).logits.double().log_softmax(-1)
        with nk.noise_state(model, seed=1, level=0.0):
            clean = model(tokens).logits.double().log_softmax(-1)
    return float((clean.exp() * (clean - noisy)).sum(-1).mean())


@pytest.mark.parametrize("name", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_weights_of_codes_are_noisy_in_their_values(name: str, llama: nn.Module, tokens: Tensor) -> None:
    """Noise is that of the values that codes stand for, to the bit: a model that holds these is the same chip."""
    quantization = pytest.importorskip("torchao.quantization")
    coded = copy.deepcopy(llama)
    quantization.quantize_(coded, getattr(quantization, name)())
    plain = copy.deepcopy(llama)
    held = [(m, coded.get_submodule(n)) for n, m in plain.named_modules() if isinstance(m, nn.Linear)]
    assert any(type(c.weight.data) is not Tensor for _, c in held)
    for m, c in held:
        if hasattr(c.weight, "dequantize") and type(c.weight.data) is not Tensor:
            m.weight.data = c.weight.dequantize()
    step = nk.WeightNoise(add=3 / 127, relative="channel")  # three steps of a code of eight bits, whose end is max|W|
    chips = []
    for model in (coded, plain):
        with nk.inject(model, None, hardware=[step], example_input=tokens[:2]), torch.no_grad():
            with nk.noise_state(model, seed=1, draws=[4]):
                chips.append(model(tokens).logits)
    apart = float((chips[0] - chips[1]).abs().max())
    with torch.no_grad():
        moved = float((chips[1] - plain(tokens).logits).abs().max())
    assert apart <= 1e-4 * float(chips[1].abs().max()) and moved > 100 * apart
    study = nk.walk(
        coded, {"input_ids": tokens}, noise=nk.WeightNoise(add=1.0, relative="channel"), target="weight", metric="kl",
        at=nk.Value(0.02), levels=[1 / 127, 16 / 127], draws=2, seed=1, sites="*mlp.down_proj*",
    )  # fmt: skip
    small, large = (sum(r.value for r in study.records if r.level == v) for v in study.meta.levels)
    assert 0 < small < large
