"""Checkpoints: a model's weights together with all settings that they came from.

A file is written whole or not at all, read without unpickling code, and never silently replaced. It has a checksum; of
one of the first, which had none, there is a warning.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from noisykernels._util.arguments import check_arguments
from noisykernels._util.files import replacing
from noisykernels.datasets.download import cache_folder, check_private, make_private

__all__ = ["CheckpointError", "Settings", "checkpoint_path", "load_checkpoint", "save_checkpoint"]


Settings = Mapping[str, str | int | float | bool | None]
_FORMAT = 1  # of the file


class CheckpointError(RuntimeError):
    """A checkpoint is damaged or of other settings; the message names the file and what to do."""


def checkpoint_path(settings: Settings, cache: str | os.PathLike[str] | None = None) -> Path:
    """Path of the checkpoint for these settings: model, data set, and a digest of them all.

    Args:
        settings: everything that shapes the weights; "model" and "data" also go into the name.
        cache: folder of checkpoints; default `checkpoints` in `datasets.cache_folder()`.

    Example:
        >>> checkpoint_path({"model": "mlp", "data": "digits", "seed": 0}, "folder").name
        'mlp-digits-5c26f3e6d7d30a71.pt'
    """
    check_arguments(checkpoint_path, locals())
    text = json.dumps([_FORMAT, dict(settings)], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = cache_folder() / "checkpoints" if cache is None else Path(cache)
    return folder / f"{settings.get('model')}-{settings.get('data')}-{digest}.pt"


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    settings: Settings,
    history: Sequence[Mapping[str, float]] = (),
) -> None:
    """Write a model's weights, the settings and the records of the training, all or nothing."""
    check_arguments(save_checkpoint, locals())
    path = Path(path)
    content = {
        "format": _FORMAT,
        "settings": dict(settings),
        "history": [dict(record) for record in history],
        "state_dict": {name: value.cpu() for name, value in model.state_dict().items()},
    }
    make_private(path.parent)
    with replacing(path) as file:
        torch.save({**content, "sha256": _digest(content)}, file)


def load_checkpoint(path: str | os.PathLike[str], model: nn.Module, settings: Settings) -> list[dict[str, float]]:
    """Read weights into a model, which must have been saved with the same settings.

    Args:
        path: file of `save_checkpoint`.
        model: takes the weights, wherever it is.
        settings: what the file must have been saved with.

    Returns:
        The records of the training.

    Raises:
        CheckpointError: not a checkpoint, damaged, of other settings, or of another model; or others than its user and
            root may write to it or its folder.

    Warns:
        UserWarning: the file has no checksum, as the first ones of this format.
    """
    check_arguments(load_checkpoint, locals())
    path = Path(path)
    advice = "delete it to train again"
    check_private(CheckpointError, path.parent, path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything; torch's words run to pages
        raise CheckpointError(f"{path}: not a readable checkpoint ({type(error).__name__}); {advice}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of format {_FORMAT}; {advice}")
    if content.get("settings") != dict(settings):
        raise CheckpointError(f"{path}: expected settings {dict(settings)}, got {content.get('settings')}; {advice}")
    try:
        if content.get("sha256", found := _digest(content)) != found:
            raise ValueError("its SHA-256 does not fit its content")
    except Exception as error:  # entries that are missing or of other types
        raise CheckpointError(f"{path}: damaged: {error}; {advice}") from error
    if "sha256" not in content:  # the first files of this format have none
        text = f"{path}: holds no checksum, so that nothing tells whether it was damaged or changed; {advice}"
        warnings.warn(text, stacklevel=2)
    try:
        model.load_state_dict(content["state_dict"])
        return [dict(record) for record in content["history"]]
    except Exception as error:  # missing entries, wrong names, shapes or types
        raise CheckpointError(f"{path}: does not fit the model ({error}); {advice}") from error


def _digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of settings, records and weights, in the order of their names."""
    digest = hashlib.sha256(json.dumps([content["settings"], content["history"]], sort_keys=True).encode())
    for name, value in sorted(content["state_dict"].items()):
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
