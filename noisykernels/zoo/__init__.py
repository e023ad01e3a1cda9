"""The networks of the papers and a small language model, trained on demand, as checkpoints; must not know studies."""

from noisykernels.zoo.checkpoint import CheckpointError, Settings, checkpoint_path, load_checkpoint, save_checkpoint
from noisykernels.zoo.language_model import Language, language
from noisykernels.zoo.llama import Llama, LlamaSizes
from noisykernels.zoo.networks import MLP, MODELS, LeNet5, build
from noisykernels.zoo.pretrained import fresh, trained
from noisykernels.zoo.transformers_folder import save_for_transformers

__all__ = [
    "MLP",
    "MODELS",
    "CheckpointError",
    "Language",
    "LeNet5",
    "Llama",
    "LlamaSizes",
    "Settings",
    "build",
    "checkpoint_path",
    "fresh",
    "language",
    "load_checkpoint",
    "save_checkpoint",
    "save_for_transformers",
    "trained",
]
