"""Models that people use, as small look-alikes: laid out and written as the originals are, with random weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.convolutional import CONVOLUTIONAL
from models.decoders import DECODERS
from models.encoders import ENCODERS
from models.inputs import Made
from models.pictures import PICTURES
from models.recurrent import RECURRENT
from models.sequences import SEQUENCES
from models.sets import SETS
from models.vision import VISION

__all__ = ["MODELS", "made"]

MODELS: dict[str, Made] = ENCODERS | DECODERS | VISION | CONVOLUTIONAL | PICTURES | RECURRENT | SEQUENCES | SETS


def made(name: str, rows: int) -> tuple[nn.Module, Tensor]:
    """A model in evaluation mode, with norms that do something, and rows for it."""
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(1)
        model = MODELS[name].build().eval()
        for module in model.modules():
            if getattr(module, "running_var", None) is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
            if "Norm" in type(module).__name__ and getattr(module, "weight", None) is not None:
                module.weight.normal_(1.0, 0.3)
        return model, MODELS[name].inputs(rows)
