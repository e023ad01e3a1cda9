"""What users get wrong of training, checkpoints and data."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import torch
from bad_calls import Table, X, Y, net
from torch import nn

import noisykernels as nk
from noisykernels.datasets import DataError, load
from noisykernels.training import accuracy, train
from noisykernels.zoo import CheckpointError, checkpoint_path, trained


def damaged(folder: Path, content: bytes) -> dict[str, object]:
    """Arguments of `trained` for which there is a checkpoint with this content."""
    settings = dict(model="mlp", data="digits", epochs=1, seed=0, lr=1e-3, batch_size=128,
                    augment=True, clamp=None, limit=None)  # fmt: skip
    path = checkpoint_path(settings, folder)
    path.write_bytes(content)
    return dict(epochs=1, cache=folder)


@patch("noisykernels.datasets.vision.SYSTEM_FOLDER", Path("SYSTEM"))
def nowhere(folder: Path) -> None:
    load("mnist", root=folder, download=False)


def sgd() -> tuple[object, object]:
    parameters = list(net().parameters())
    return parameters, torch.optim.SGD(parameters, lr=0.1)


def sharp(kind: type, **settings: object) -> object:
    return kind(net().named_parameters(), torch.optim.SGD, lr=0.1, **settings)


CASES: Table = {
    "Training, checkpoints, data": [
        ("labels that are no int64", lambda _: train(net(), (X, Y.float()), epochs=1), ValueError),
        ("more inputs than labels", lambda _: accuracy(net(), (X, Y[:2])), ValueError),
        (
            "checkpoint cut off",
            lambda f: trained("mlp", "digits", **damaged(f, b"PK")),
            CheckpointError,
        ),
        ("base optimizer that is no class", lambda _: nk.training.SAM(*sgd()), TypeError),
        ("negative radius", lambda _: sharp(nk.training.SAM, rho=-0.1), ValueError),
        ("norm of an order below 1", lambda _: sharp(nk.training.SAMSON, p=0.5), ValueError),
        (
            "parameters without names",
            lambda _: nk.training.ASAM(net().parameters(), torch.optim.SGD, lr=0.1),
            ValueError,
        ),
        ("setting of two owners", lambda _: nk.training.SAM(net().parameters(), torch.optim.Adadelta), ValueError),
        ("step without two passes", lambda _: sharp(nk.training.SAM).step(), RuntimeError),
        ("second ascent", lambda _: [optimizer.ascend() for optimizer in [sharp(nk.training.SAM)] * 2], RuntimeError),
        ("restore without an ascent", lambda _: sharp(nk.training.SAM).restore(), RuntimeError),
        ("re-calibration without a batch norm", lambda _: nk.training.recalibrate_bn(net(), X), ValueError),
        (
            "re-calibration with single rows",
            lambda _: nk.training.recalibrate_bn(nn.BatchNorm1d(4), X, batch_size=1),
            ValueError,
        ),
        (
            "re-calibration with batches of another type",
            lambda _: nk.training.recalibrate_bn(nn.BatchNorm1d(4), ["a"]),
            TypeError,
        ),
        ("schedule whose steps do not rise", lambda _: nk.training.Schedule([(0, 0.0), (0, 1.0)]), ValueError),
        ("ramp over no steps", lambda _: nk.training.Schedule.ramp(0), ValueError),
        ("negative spread of levels", lambda _: nk.training.VarianceAware(1.0, 0.45, -0.66, seed=1), ValueError),
        (
            "unknown form of random levels",
            lambda _: nk.training.VarianceAware(1.0, 0.45, 0.66, seed=1, form="paper"),
            ValueError,
        ),
        ("random levels without rows", lambda _: nk.training.VarianceAware(1.0, 0.45, 0.66, seed=1)(0), ValueError),
        ("statistics without data", lambda _: nk.training.site_statistics(net(), X[:0]), ValueError),
        ("gradient norms without labels", lambda _: nk.training.gradient_norms(net(), X), ValueError),
        ("log of a measure that is no function", lambda _: nk.training.MetricLog(sites=[]), TypeError),
        ("block with an even kernel", lambda _: nk.training.DenoisingBlock(4, dims=2, kernel_size=2), ValueError),
        ("block behind the input", lambda _: nk.training.insert_denoising(net(), "input", example_input=X), ValueError),
        ("block behind no site", lambda _: nk.training.insert_denoising(net(), "fc1", example_input=X), ValueError),
        ("negative budget of blocks", lambda _: nk.training.denoising_sites(net(), [], budget=-0.1), ValueError),
        ("data nowhere, no download", nowhere, DataError),
        ("unknown data set", lambda f: load("imagenet"), ValueError),
    ],
}
