"""Sums that saturate depend on the order of their operands: what that costs a network that was trained without it.

Spoken digits are told apart by an MLP of 2560-128-128-10 without biases on the matrix core of BrainScaleS-2, whose
membrane saturates at a limit while the products of 128 rows arrive. It is trained plainly and, with two gradients each,
on the twin without an order (one clamp after the sum) and on the model with the natural order; all are tested on both
and under random orders. 51 trainings; about 9 minutes on one core.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from scaffold import TEST_SEED, Data, main, mean, pyplot, show, spread, write
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.brainscales import BrainScaleS2, BSS2Linear, ConvertingReLU
from noisykernels.datasets import spoken_digits, synthetic_recordings
from noisykernels.experiments import OrderStudy, order_sensitivity
from noisykernels.training import train
from noisykernels.zoo import checkpoint_path, load_checkpoint, save_checkpoint

METHODS = ("plain", "twin", "twin, masked", "ordered", "ordered, masked")
TESTS = ("twin", "natural order", "random orders")
SHOWN = ("twin, masked", "ordered, masked")  # whose layers are looked at
HIDDEN, SHIFT, LARGEST = 128, 2, 31


class Ideal(nk.hardware.Device):
    """Sums in LSB, without rounding, noise or limits."""

    def __init__(self, gain: float) -> None:
        self.gain = gain

    def output(self, y: Tensor, draw: nk.hardware.Draw) -> Tensor:
        """The sums in LSB."""
        return y * self.gain


class IdealReLU(nn.Module):
    """What `ConvertingReLU` rounds."""

    def forward(self, x: Tensor) -> Tensor:
        """Values of [0, 31]."""
        return (x / 2**SHIFT).clamp(0, LARGEST)


class Logits(nn.Module):
    """Results of 8 bits in a range that suits the cross-entropy."""

    def forward(self, x: Tensor) -> Tensor:
        """A sixteenth of them."""
        return x / 16


def network(features: int, device: BrainScaleS2, seed: int, plain: bool = False) -> nn.Module:
    """The untrained MLP; plain: without the hardware, but in its units."""

    def layer(inputs: int, outputs: int) -> nn.Module:
        made = BSS2Linear(inputs, outputs, bias=False, device=device)
        if plain:
            assert made.hardware is not None
            made.hardware = (made.hardware[0], Ideal(device.gain))
        return made

    def rectifier() -> nn.Module:
        return IdealReLU() if plain else ConvertingReLU(SHIFT)

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        first, second, third = layer(features, HIDDEN), layer(HIDDEN, HIDDEN), layer(HIDDEN, 10)
    return nn.Sequential(nn.Flatten(), first, rectifier(), second, rectifier(), third, Logits())


def loaded(split: str, data: str, size: tuple[int, int], limit: int | None = None) -> Data:
    """Features as inputs of 5 bits; "made": of synthetic words."""
    source = synthetic_recordings() if data == "made" else None if data == "spoken-digits" else data
    inputs, labels = spoken_digits(split, source, frames=size[0], bands=size[1], limit=limit)
    return inputs * LARGEST, labels


def device_of(method: str, gain: float, limit: float) -> BrainScaleS2:
    """What a network is trained on."""
    gradient = "masked" if method.endswith("masked") else "straight_through"
    device = BrainScaleS2(gain, ordered=True, low=-limit, high=limit, gradient=gradient)
    return device.unordered() if method.startswith("twin") else device


def trained_on(
    method: str, rows: Data, data: str, gain: float, limit: float, epochs: int, lr: float, seed: int
) -> nn.Module:
    """A trained network, or its checkpoint; with the ordered device."""
    plain, features = method == METHODS[0], rows[0][0].numel()
    settings: dict[str, Any] = {"model": "mlp-bss2", "data": Path(data).stem, "epochs": epochs, "lr": lr, "seed": seed}
    settings |= {"features": features, "method": method, "gain": gain, "limit": None if plain else limit}
    made = network(features, device_of(method, gain, limit), seed, plain)
    path = checkpoint_path(settings)
    if path.exists():
        load_checkpoint(path, made, settings)
    else:
        on_step = nk.training.noisy_steps(made, seed=seed)
        train(made, rows, epochs=epochs, lr=lr, clamp=63.0, seed=seed, on_step=on_step)
        save_checkpoint(path, made, settings)
    tested = network(features, device_of("ordered", gain, limit), seed)
    tested.load_state_dict(made.state_dict())
    return tested.eval()


def accuracies(study: OrderStudy) -> dict[str, float]:
    """The accuracy of each test."""
    means = (study.orders["none"], study.orders["natural"], float(study.values.mean()))
    return {**dict(zip(TESTS, means, strict=True)), "disagreement": study.disagreement}


def run(
    out: Path,
    data: str = "spoken-digits",
    epochs: int = 20,
    lr: float = 0.5,
    gain: float = 0.006,
    limit: float = 8.0,
    limits: tuple[float, ...] = (128.0, 32.0, 16.0, 8.0),
    rows: int = 300,
    permutations: int = 10,
    trainings: int = 3,
    frames: int = 64,
    bands: int = 40,
) -> dict[str, Any]:
    """Accuracy of each way of training in each test; data: "spoken-digits", a file (see `spoken_digits`), or "made"."""
    learnt, test = loaded("train", data, (frames, bands)), loaded("test", data, (frames, bands), rows)
    recipe: dict[str, Any] = {"gain": gain, "data": data, "epochs": epochs, "lr": lr}
    results: dict[str, Any] = {**recipe, "limit": limit, "limits": limits, "rows": rows, "permutations": permutations}
    results["methods"] = {method: [] for method in METHODS}
    studies: dict[str, OrderStudy] = {}
    for method in METHODS:
        for at in sorted({limit, *limits}, reverse=True):
            found = []
            for seed in range(trainings):
                made = trained_on(method, learnt, limit=at, seed=seed, **recipe)
                shown = at == limit and seed == 0 and method in SHOWN
                orders = ("natural", "positive_first") if shown else ("natural",)  # to sort takes long
                study = order_sensitivity(made, test, orders=orders, permutations=permutations, seed=TEST_SEED)
                found.append(accuracies(study))
                if shown:
                    studies[method] = study
            results["methods"][method].append({"limit": at, "trainings": found})

    def cell(values: list[float]) -> str:
        return f"{mean(values):.3f} ±{spread(values):.3f}"

    def values(method: str, at: float, name: str) -> list[float]:
        (found,) = (part["trainings"] for part in results["methods"][method] if part["limit"] == at)
        return [one[name] for one in found]

    of = f"mean and spread of {trainings} trainings of {epochs} epochs, {len(test[1])} test rows"
    lines = []
    for method in METHODS:
        known = TESTS[1] if method.startswith("ordered") else TESTS[0]  # what it was trained on
        other = TESTS[0] if known == TESTS[1] else TESTS[1]
        drops = [[a - b for a, b in zip(values(method, limit, known), values(method, limit, name), strict=True)]
                 for name in (other, TESTS[2])]  # fmt: skip
        columns = [cell(values(method, limit, name)) for name in (*TESTS, "disagreement")]
        lines.append([method, *columns, *map(cell, drops)])
    head = ["trained", *TESTS, "two orders differ", "lost on the other", "lost at random"]
    show(f"membrane limited to ±{limit:g} LSB, gain {gain:g}: accuracy by the test; {of}", head, lines)
    lines = [
        [method, name, *(cell(values(method, at, name)) for at in sorted({limit, *limits}, reverse=True))]
        for method in METHODS
        for name in TESTS
    ]
    head = ["trained", "tested", *(f"±{at:g}" for at in sorted({limit, *limits}, reverse=True))]
    show(f"accuracy by the limit of the membrane; {of}", head, lines, left=(0, 1))
    for method in SHOWN:
        print(f"\ntrained {method}, limit ±{limit:g}, first training:\n{studies[method].table()}", flush=True)

    figure, axes = pyplot().subplots(1, 3, figsize=(16, 4.8), layout="constrained")
    studies[SHOWN[0]].plot(axes[:2])
    axes[0].set_title(f"trained on the {SHOWN[0]}, limit ±{limit:g}: outputs")
    axes[1].set_title("... and accuracy")
    order = sorted({limit, *limits})
    for i, method in enumerate(METHODS):
        for test_name, style in zip(TESTS[:2], ("-", "--"), strict=True):
            found = [values(method, at, test_name) for at in order]
            label = method if style == "-" else None
            axes[2].errorbar(
                order, [mean(v) for v in found], [spread(v) for v in found], color=f"C{i}", ls=style, marker="o", ms=4,
                capsize=2, label=label,
            )  # fmt: skip
    axes[2].set(xscale="log", xlabel="limit of the membrane, LSB", ylabel="accuracy", ylim=(0, 1))
    axes[2].set_xticks(order, [f"{at:g}" for at in order])
    axes[2].minorticks_off()
    axes[2].set_title("tested on the twin (solid), in natural order (dashed)")
    axes[2].legend(title="trained", fontsize="small")
    axes[2].grid(alpha=0.3)
    write(out, "ordering", results, figure)
    return results


if __name__ == "__main__":
    main(run)
