"""Models that people use: small look-alikes, laid out and written as the originals are, and originals of packages that
may be installed. All have random weights."""

from __future__ import annotations

import torch
from torch import nn

from models.convolutional import CONVOLUTIONAL
from models.decoders import DECODERS
from models.encoders import ENCODERS
from models.inputs import Given, Made
from models.of_timm import TIMM
from models.of_torchvision import TORCHVISION
from models.of_transformers import TRANSFORMERS
from models.pictures import PICTURES
from models.recurrent import RECURRENT
from models.sequences import SEQUENCES
from models.sets import SETS
from models.vision import VISION

__all__ = ["MODELS", "ORIGINALS", "made"]

MODELS: dict[str, Made] = ENCODERS | DECODERS | VISION | CONVOLUTIONAL | PICTURES | RECURRENT | SEQUENCES | SETS
ORIGINALS: dict[str, Made] = {
    f"{made.package}: {name}": made for models in (TORCHVISION, TIMM, TRANSFORMERS) for name, made in models.items()
}


def made(name: str, rows: int) -> tuple[nn.Module, Given]:
    """A model in evaluation mode, with norms that do something, and rows for it."""
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(1)
        found = (MODELS | ORIGINALS)[name]
        model = found.build().eval()
        for module in model.modules():
            if getattr(module, "running_var", None) is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
            if isinstance(module, nn.Linear) and not module.weight.any():  # a head that begins at zero hears no noise
                module.weight.normal_(0.0, 0.3)
            if "Norm" in type(module).__name__ and getattr(module, "weight", None) is not None:
                module.weight.normal_(1.0, 0.3)
        return model, found.inputs(rows)
