"""The networks of the papers, trained on demand and kept as checkpoints; knows of no study."""

from noisykernels.zoo.checkpoint import CheckpointError, Settings, checkpoint_path, load_checkpoint, save_checkpoint
from noisykernels.zoo.networks import MLP, MODELS, LeNet5, build
from noisykernels.zoo.pretrained import fresh, trained

__all__ = [
    "MLP",
    "MODELS",
    "CheckpointError",
    "LeNet5",
    "Settings",
    "build",
    "checkpoint_path",
    "fresh",
    "load_checkpoint",
    "save_checkpoint",
    "trained",
]
