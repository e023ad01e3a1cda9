"""A small Llama of transformers trained with noise at its projections by `Trainer`: a ramp, statistics, a checkpoint.

Needs the extra `models`. Training is interrupted and resumed: the weights are those of one run, to the bit.
"""

import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import noisykernels as nk

TOKENS = torch.randint(3, 50, (64, 1), generator=torch.Generator().manual_seed(0)) + torch.arange(12) % 5
ROWS = [{"input_ids": row, "labels": row} for row in TOKENS]


def trained(folder: Path, steps: int, resumed: str | None = None) -> Trainer:
    """So many steps, from the beginning or from a checkpoint."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    model = nk.inject(LlamaForCausalLM(LlamaConfig(**sizes)), nk.Noise(add=0.2, relative="rms"), where="*_proj").model
    noise = nk.integrations.trainer_callback(
        seed=1, level=nk.training.Schedule.ramp(6), statistics={"input_ids": TOKENS[:4]}
    )
    settings = TrainingArguments(
        str(folder), max_steps=steps, save_steps=6, logging_steps=3, learning_rate=5e-3, per_device_train_batch_size=8,
        gradient_accumulation_steps=2, lr_scheduler_type="constant", use_cpu=True, report_to=[], disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, settings, train_dataset=ROWS, callbacks=[noise])
    trainer.train(resume_from_checkpoint=resumed)
    return trainer


def run(folder: Path) -> bool:
    """Whether both ways give the same weights."""
    whole = trained(folder / "whole", 12)
    for record in whole.state.log_history:
        if "loss" in record:
            snr = record["noise/model.layers.1.mlp.down_proj:linear#0/snr_db"]
            print(
                f"step {record['step']}: loss {record['loss']:.2f}, level {record['noise/level']:.1f}, SNR {snr:.0f} dB"
            )
    trained(folder / "parts", 6)
    parts = trained(folder / "parts", 12, str(folder / "parts" / "checkpoint-6"))
    return all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        print("the same weights:", run(Path(made)))
