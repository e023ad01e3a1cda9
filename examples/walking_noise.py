"""Midpoint profiles of LeNet-5-BN on Fashion-MNIST, trained clean and trained with noise at one site.

Additive and multiplicative noise walked through the clean-trained network and through one that was trained with
additive noise at the second convolution, before its batch norm. Writes the studies and a picture, and prints the
tables. About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import noisykernels as nk
from noisykernels.datasets import augmentation, load
from noisykernels.study import Study
from noisykernels.training import train
from noisykernels.zoo import checkpoint_path, fresh, load_checkpoint, save_checkpoint, trained


def noisy_trained(data: str, model: str, epochs: int, level: float, where: str, limit: int | None) -> nn.Module:
    """The recipe of `trained` with additive noise at the chosen sites in training; cached likewise."""
    settings = {"model": model, "data": data, "epochs": epochs, "add": level, "where": where, "limit": limit}
    network = fresh(model, data)
    path = checkpoint_path(settings)
    if path.exists():
        load_checkpoint(path, network, settings)
        return network.eval()
    inputs, labels = load(data, "train", limit=limit)
    with nk.inject(network, nk.Noise(add=level), where, example_input=inputs[:2]):
        history = train(
            network,
            (inputs, labels),
            epochs=epochs,
            augment=augmentation(data),
            progress=True,
            on_step=lambda step, rows: nk.noise_state(network, seed=1, draws=[step], rows=rows),
        )
    save_checkpoint(path, network, settings, history)
    return network.eval()


def run(
    out: Path,
    epochs: int = 3,
    rows: int | None = 2000,
    draws: int = 3,
    data: str = "fashion-mnist",
    model: str = "lenet5-bn",
    limit: int | None = None,
    level: float = 10.0,
) -> list[Study]:
    """Runs the four studies; rows: of the test set, limit: of the training set, level: of the noise in training."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    out.mkdir(exist_ok=True)
    test = load(data, "test", limit=rows)
    kinds = {
        "additive": (nk.Noise(add=1.0), torch.logspace(-1.5, 3.5, 16)),
        "multiplicative": (nk.Noise(mul=1.0), torch.linspace(0.0, 6.0, 13)),
    }
    site = "conv2:conv2d#0" if "lenet" in model else "fc2:linear#0"
    networks: dict[str, Callable[[], nn.Module]] = {
        "clean-trained": lambda: trained(model, data, epochs=epochs, limit=limit, progress=True),
        f"trained with add={level:g} at {site}": lambda: noisy_trained(data, model, epochs, level, site, limit),
    }
    plan = [(f"{how}, {what}", network, *kind) for what, kind in kinds.items() for how, network in networks.items()]
    studies = []
    figure, axes = pyplot.subplots(len(plan), 2, figsize=(14, 5 * len(plan)), layout="constrained")
    for row, (title, network, noise, levels) in zip(axes, plan, strict=True):
        study = nk.walk(network(), test, noise=noise, levels=levels, draws=draws, seed=0, progress=True)
        studies.append(study)
        study.save(out / f"{title.replace(' ', '_').replace(',', '').replace(':', '-')}.json")
        print(f"\n{title}\n{study.table()}", flush=True)
        study.plot(row)
        row[0].set_title(title)
    figure.savefig(out / "walking_noise.png", dpi=70)
    return studies


if __name__ == "__main__":
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--out", type=Path, default=Path("results"))
    flags.add_argument("--epochs", type=int, default=3)
    run(**vars(flags.parse_args()))
