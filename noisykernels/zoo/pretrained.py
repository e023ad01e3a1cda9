"""The networks of the zoo, trained here and kept as checkpoints."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import Range
from noisykernels._util.files import check_writable
from noisykernels._util.runtime import device_of
from noisykernels.datasets.augment import augmentation
from noisykernels.datasets.download import check_private
from noisykernels.datasets.vision import info, load
from noisykernels.training.loop import train
from noisykernels.zoo.checkpoint import CheckpointError, Settings, checkpoint_path, load_checkpoint, save_checkpoint
from noisykernels.zoo.networks import build

__all__ = ["fresh", "settings_of", "trained"]


def fresh(model_name: str, data_name: str, *, seed: int = 0) -> nn.Module:
    """An untrained model for a data set; the same weights for the same seed, on the CPU.

    torch's global generator is left exactly as it was.

    Example:
        >>> fresh("mlp", "digits", seed=1).fc1
        Linear(in_features=64, out_features=64, bias=True)
    """
    check_arguments(fresh, locals())
    about = info(data_name)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also reseed the generators of every accelerator.
        torch.default_generator.manual_seed(seed)
        return build(model_name, about.shape, about.classes)


def settings_of(*args: Any, **kwargs: Any) -> Settings:
    """What shapes the weights of `trained`, and so names their checkpoint; arguments and their defaults as there."""
    bound = inspect.signature(trained).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    return {
        "model": given["model_name"],
        "data": given["data_name"],
        "epochs": given["epochs"],
        "seed": given["seed"],
        "lr": float(given["lr"]),
        "batch_size": given["batch_size"],
        "augment": given["augment"],
        "clamp": None if given["clamp"] is None else float(given["clamp"]),
        "limit": given["limit"],
    }


def trained(
    model_name: str,
    data_name: str,
    *,
    epochs: int,
    seed: int = 0,
    lr: float = 1e-3,
    batch_size: int = 128,
    augment: bool = True,
    clamp: float | None = None,
    limit: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    root: str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
    on_epoch: Callable[[dict[str, float]], object] | None = None,
) -> nn.Module:
    """A trained model: read from its checkpoint if there is one, else trained and stored.

    The checkpoint's name holds the model, the data set and a digest of all settings that shape the
    result (`cache`, `root`, `progress` and `on_epoch` do not, nor does `device`, but for rounding).

    Args:
        model_name: one of `zoo.MODELS`.
        data_name: one of `datasets.DATASETS`.
        epochs, lr, batch_size, clamp: see `train`.
        seed: of the first weights, of shuffling and of augmentation.
        augment: use the data set's published augmentation, if it has one.
        limit: train on the first `limit` rows only.
        cache: folder of checkpoints; default `checkpoints` in `datasets.cache_folder()`.
        root: see `datasets.load`.
        device, progress, on_epoch: see `train`.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: there is a file, but it is damaged or of other settings, or others may write to it or its
            folder; it is left alone.
        OSError: there is none, and none can be written; before any training.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model = trained("mlp", "digits", epochs=1, limit=200, cache=folder)
        >>> model.training
        False
    """
    check_arguments(trained, locals(), clamp=Range(0, ends=False))
    place = None if device is None else device_of("trained", device)
    settings = settings_of(
        model_name, data_name, epochs=epochs, seed=seed, lr=lr, batch_size=batch_size, augment=augment, clamp=clamp,
        limit=limit,
    )  # fmt: skip
    model = fresh(model_name, data_name, seed=seed)
    path = checkpoint_path(settings, cache)
    if path.exists():
        load_checkpoint(path, model, settings)
        return (model if place is None else model.to(place)).eval()
    found = next(place for place in path.parents if place.exists() or place.is_symlink())
    check_writable(found / path.name)  # before the work
    check_private(CheckpointError, path.parent)
    history = train(
        model,
        load(data_name, "train", root=root, limit=limit),
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        augment=augmentation(data_name) if augment else None,
        clamp=clamp,
        seed=seed,
        device=place,
        progress=progress,
        on_epoch=on_epoch,
    )
    save_checkpoint(path, model, settings, history)
    return model.eval()
