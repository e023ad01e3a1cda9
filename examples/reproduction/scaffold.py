"""What the reproduction scripts share: cached trainings with and without noise, accuracy under noise, results on disk.

Everything is seeded. The trainings are kept as checkpoints, so that a script that is run again, or was stopped, trains
nothing twice.
"""

from __future__ import annotations

import argparse
import inspect
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels._util.text import aligned
from noisykernels.datasets import augmentation, load
from noisykernels.training import train
from noisykernels.zoo import checkpoint_path, fresh, load_checkpoint, save_checkpoint

Data = tuple[Tensor, Tensor]
TEST_SEED = 2024  # of the noise in all tests; that of a training is the training's own seed


def cached(settings: dict[str, Any], fit: Callable[[nn.Module], Any], network: nn.Module | None = None) -> nn.Module:
    """A network trained by `fit`, or read from its checkpoint; the settings say all that shapes its weights.

    network: untrained, where it is none of the package's models.
    """
    if network is None:
        network = fresh(settings["model"], settings["data"], seed=settings["seed"])
    path = checkpoint_path(settings)
    if path.exists():
        load_checkpoint(path, network, settings)
    else:
        fit(network)
        save_checkpoint(path, network, settings)
    return network.eval()


def noisy_trained(
    model: str,
    data: str,
    *,
    epochs: int,
    limit: int | None = None,
    seed: int = 0,
    where: str | None = None,
    clamp: float | None = None,
    **levels: Any,
) -> nn.Module:
    """The published recipe (Adam 1e-3, cosine, batches of 128, crops and flips), with `Noise(**levels)` at the sites.

    Without levels it trains clean. limit: of the training rows; clamp: of the weights after each step.
    """
    settings = {"model": model, "data": data, "epochs": epochs, "limit": limit, "seed": seed, "clamp": clamp}
    settings |= {"where": where, **levels}

    def fit(network: nn.Module) -> None:
        rows = load(data, "train", limit=limit)
        options: dict[str, Any] = {"epochs": epochs, "seed": seed, "clamp": clamp, "augment": augmentation(data)}
        if not levels:
            train(network, rows, **options)
            return
        with nk.inject(network, nk.Noise(**levels), where, example_input=rows[0][:2]):
            train(
                network,
                rows,
                on_step=lambda step, ids: nk.noise_state(network, seed=seed, draws=[step], rows=ids),
                **options,
            )

    return cached(settings, fit)


@torch.inference_mode()
def accuracies(
    network: nn.Module, data: Data, noise: nk.Noise | None = None, where: Any = None, *, draws: int = 1
) -> list[float]:
    """Accuracy of each draw of the noise at the chosen sites (None: all of them); clean without noise."""
    inputs, labels = data
    correct = torch.zeros(draws, dtype=torch.int64)
    with nk.inject(network.eval(), noise, where if noise is not None else None, example_input=inputs[:2]):
        for rows in torch.arange(len(labels)).split(500):
            with nk.noise_state(network, seed=TEST_SEED, draws=range(draws), rows=rows):
                found = network(inputs[rows]).view(draws, len(rows), -1).argmax(-1)
            correct += (found == labels[rows]).sum(1)
    return (correct.double() / len(labels)).tolist()


def mean(values: Sequence[float]) -> float:
    """The mean."""
    return sum(values) / len(values)


def spread(values: Sequence[float]) -> float:
    """Standard deviation of a sample; 0 of a single value."""
    m = mean(values)
    return (sum((v - m) ** 2 for v in values) / max(1, len(values) - 1)) ** 0.5


def show(title: str, head: Sequence[str], lines: Sequence[Sequence[Any]], left: Sequence[int] = (0,)) -> None:
    """Prints a table; numbers with four digits."""
    cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in line] for line in lines]
    print("\n".join(["", title, *aligned([list(head), *cells], left)]), flush=True)


def pyplot() -> Any:
    """matplotlib's pyplot, without a display."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def write(out: Path, name: str, results: dict[str, Any], figure: Any) -> None:
    """Writes the numbers and the picture."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"reproduction_{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    figure.savefig(out / f"reproduction_{name}.png", dpi=65)
    pyplot().close(figure)


def main(run: Callable[..., Any]) -> None:
    """Command line of a script: its `run`, with the arguments that have a default as options. One thread."""
    start = time.perf_counter()
    flags = argparse.ArgumentParser(description=inspect.getmodule(run).__doc__)
    flags.add_argument("--out", type=Path, default=Path("results"))
    for name, parameter in inspect.signature(run).parameters.items():
        if name != "out":
            several = isinstance(parameter.default, tuple)
            kind = type(parameter.default[0] if several else parameter.default)
            count = {"nargs": "*"} if several else {}
            flags.add_argument(
                f"--{name}", type=kind, default=parameter.default, help="(default: %(default)s)", **count
            )
    torch.set_num_threads(1)  # small layers: a second thread costs more than it brings
    run(**vars(flags.parse_args()))
    print(f"\n{(time.perf_counter() - start) / 60:.1f} minutes")
