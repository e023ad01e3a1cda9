"""transformers' models that processes share by their own plans: what each of them finds, and one alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from process_cases import Found, Group, full
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

import noisykernels as nk

__all__ = ["FOLDER", "MODELS", "all_of", "noise_in"]

SMALL: dict[str, Any] = dict(
    vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
MODELS = {
    "Llama": SMALL,
    "Qwen2": SMALL,  # with biases in its columns
    "Qwen3": SMALL | dict(head_dim=4),
    "Phi3": SMALL,  # two layers in one, whose results are gathered
}
FOLDER = "FOLDER_OF_MODELS"
IDS = torch.arange(3, 15).reshape(2, 6)
ROWS = nk.TokenRows(64, sequence=[9, 4])


def folder_of(folder: Path, name: str, zero: bool) -> Path:
    """Where a model is, made here in the first process that asks."""
    import transformers  # takes seconds

    made = getattr(transformers, f"{name}ForCausalLM")
    path = folder / f"{name} {zero}"
    if not path.exists():
        torch.manual_seed(0)
        model = made(made.config_class(**MODELS[name]))
        with torch.no_grad():
            for module in model.modules():
                if zero and isinstance(module, nn.Linear):
                    for parameter in module.parameters():
                        parameter.zero_()
        model.save_pretrained(path)
    return path


def loaded(folder: Path, name: str, group: Group | None, zero: bool = False) -> nn.Module:
    import transformers  # takes seconds

    path = folder_of(folder, name, zero) if group is None else folder / f"{name} {zero}"
    if group is None:
        alone: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(path)
        return alone.eval()
    os.environ |= {"WORLD_SIZE": str(group.size), "RANK": str(group.rank), "LOCAL_RANK": str(group.rank)}
    by_plan = transformers.distributed.DistributedConfig(tp_size=group.size)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, distributed_config=by_plan)
    assert any(isinstance(p, DTensor) for p in model.parameters())
    return model.eval()


def noise_in(group: Group | None, folder: Path) -> dict[str, Found]:
    """Of each model, with gradients and without: outputs of the linear layers, which are noise and nothing else, since
    their weights are zero; and logits of weights that are not."""
    found = {}
    for name in MODELS:
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                key = f"{name}, {'with' if grad else 'without'} gradients"
                found[f"{key}: noise"] = _outputs(loaded(folder, name, group, zero=True), group)
                model = loaded(folder, name, group)
                with nk.inject(model, nk.Noise(add=0.1)), nk.noise_state(model, seed=1, rows=ROWS):
                    found[f"{key}: logits"] = {"logits": full(model(IDS).logits)}
    return found


def _outputs(model: nn.Module, group: Group | None) -> Found:
    found: Found = {}

    def note(name: str, module: nn.Module, output: Tensor) -> None:
        if group is not None and output.shape[-1] != module.out_features:
            output = DTensor.from_local(output, group.mesh, [Shard(2)]).full_tensor()
        found[name] = full(output)

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda m, _, output, name=name: note(name, m, output))
    with nk.inject(model, nk.Noise(add=1.0)), nk.noise_state(model, seed=1, rows=ROWS):
        model(IDS)
    return found


def refused(group: Group, folder: Path) -> str:
    """The message where devices are to act on a part: weights, without gradients, are plain tensors of this process."""
    model = loaded(folder, "Llama", group)
    try:
        with torch.no_grad(), nk.inject(model, None, hardware=[nk.WeightNoise(add=0.1)]):
            with nk.noise_state(model, seed=1):
                model(IDS)
    except RuntimeError as error:
        return str(error)
    return ""


def all_of(group: Group) -> tuple[dict[str, Found], str]:
    """Of models that one process has put into this folder."""
    folder = Path(os.environ[FOLDER])
    return noise_in(group, folder), refused(group, folder)
