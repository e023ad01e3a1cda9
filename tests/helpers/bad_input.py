"""What users get wrong, and the error that each mistake gets: the table of docs/errors.md.

`python tests/helpers/bad_input.py` writes the document; test_bad_input.py checks that it is true.
"""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels._engine.store import Store
from noisykernels.cli.main import main
from noisykernels.datasets import DataError, load
from noisykernels.experiments import worst_of
from noisykernels.training import accuracy, train
from noisykernels.zoo import CheckpointError, checkpoint_path, trained

DOCUMENT = Path(__file__).parents[2] / "docs" / "errors.md"
NOISE = nk.Noise(add=0.1)
WEIGHTS = nk.WeightNoise(add=0.1, relative="layer")
NAN = float("nan")
Action = Callable[[Path], object]


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU())


X, Y = torch.zeros(6, 4), torch.zeros(6, dtype=torch.int64)


def saturated(limit: float) -> list[nk.hardware.Device]:
    return [nk.Serial(low=-limit, high=limit)]


def injected(x: Tensor = X, noise: object = NOISE, where: object = None, **options: object) -> object:
    model = options.pop("model", None) or net()
    with nk.inject(model, noise, where, **options):
        return model(x)


def stated(model: nn.Module | None = None, x: Tensor = X, **state: object) -> object:
    model = net() if model is None else model
    with nk.inject(model, NOISE), nk.noise_state(model, **state):
        return model(x)


def walk(model: nn.Module | None = None, data: object = (X, Y), **options: object) -> object:
    settings = dict(noise=NOISE, levels=[1.0], draws=1, seed=0) | options
    return nk.walk(net() if model is None else model, data, **settings)


def searched() -> nk.Study:
    """A search that has found a midpoint."""
    x = torch.tensor([[1.0, 0, 0, 0], [-1, 0, 0, 0]]).repeat(20, 1)
    model = nn.Linear(4, 2, bias=False)
    nn.init.eye_(model.weight)
    return nk.walk(model, (x, (x[:, 0] < 0).long()), noise=WEIGHTS, target="weight", search=nk.Search(0.9), seed=0)


def cli(*arguments: object) -> None:
    """Runs the command line; what it writes to standard error becomes the message."""
    text = io.StringIO()
    with contextlib.redirect_stderr(text), contextlib.redirect_stdout(io.StringIO()):
        try:
            code: object = main([str(a) for a in arguments])
        except SystemExit as error:  # a wrong flag: argparse prints the usage, then the error
            code = error.code
    message = text.getvalue().strip().splitlines()[-1].partition(" (choose from")[0]
    raise SystemExit(f"{message} [exit code {code}]")


def damaged(folder: Path, content: bytes) -> dict[str, object]:
    """Arguments of `trained` for which there is a checkpoint with this content."""
    settings = dict(model="mlp", data="digits", epochs=1, seed=0, lr=1e-3, batch_size=128,
                    augment=True, clamp=None, limit=None)  # fmt: skip
    path = checkpoint_path(settings, folder)
    path.write_bytes(content)
    return dict(epochs=1, cache=folder)


def unnoted(folder: Path) -> Path:
    """A store that no command has filled."""
    Store(folder / "a.db", {}).close()
    return folder / "a.db"


def recurrent() -> nn.Module:
    return nn.Sequential(nn.LSTM(4, 3))


class Pair(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.relu(a) + b


class Mixing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x @ x.T)


class Counts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(len(x)):
            x = torch.relu(x)
        return x


def two_inputs() -> None:
    model = Pair()
    with nk.inject(model, NOISE), nk.noise_state(model, draws=[0, 1]):
        model(X, X)


def nested() -> None:
    inner = net()

    class Calls(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return inner(x)

    model = Calls()
    with nk.inject(inner, NOISE), nk.inject(model, NOISE):
        model(X)


def part_first() -> None:
    model = net()
    nk.inject(model[0], NOISE)
    nk.inject(model, NOISE)


def whole_first() -> None:
    model = net()
    nk.inject(model, NOISE)
    nk.inject(model[0], NOISE)


def packed() -> None:
    sequence = nn.utils.rnn.pack_padded_sequence(torch.zeros(2, 3, 4), [3, 2], batch_first=True)

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(sequence)[0].data

    injected(torch.zeros(2, 1), model=Packed())


@patch("noisykernels.datasets.vision.SYSTEM_FOLDER", Path("SYSTEM"))
def nowhere(folder: Path) -> None:
    load("mnist", root=folder, download=False)


def training_mode_batch_norm() -> None:
    stated(nn.Sequential(nn.BatchNorm1d(4)).train(), seed=0, draws=[0, 1])


def sgd() -> tuple[object, object]:
    parameters = list(net().parameters())
    return parameters, torch.optim.SGD(parameters, lr=0.1)


def sharp(kind: type, **settings: object) -> object:
    return kind(net().named_parameters(), torch.optim.SGD, lr=0.1, **settings)


def hardware(*devices: object) -> object:
    return nk.linear(X, torch.zeros(3, 4), hardware=list(devices), seed=0)


# area -> [(what is wrong, the call, the exception)]
CASES: dict[str, list[tuple[str, Action, type[BaseException] | tuple]]] = {
    "Noise": [
        ("negative level", lambda _: nk.Noise(add=-0.1), ValueError),
        ("NaN level", lambda _: nk.Noise(mul=NAN), ValueError),
        ("infinite level", lambda _: nk.Noise(add=float("inf")), ValueError),
        ("level of another type", lambda _: nk.Noise(add="0.1"), TypeError),
        ("whole-number tensor", lambda _: nk.Noise(add=torch.tensor(1)), TypeError),
        (
            "level that wants a gradient",
            lambda _: nk.Noise(add=torch.ones((), requires_grad=True)),
            ValueError,
        ),
        ("unknown order", lambda _: nk.Noise(add=1.0, order="add"), ValueError),
        ("unknown kind", lambda _: nk.Noise(add=1.0, kind="cauchy"), ValueError),
        ("fold of add_mul", lambda _: nk.Noise(1.0, 1.0, order="add_mul", fold=True), ValueError),
        ("ratio outside [0, 1]", lambda _: nk.Noise.amplitude(1.0, 1.5), ValueError),
        (
            "negative tensor level, when used",
            lambda _: injected(noise=nk.Noise(add=torch.tensor(-1.0))),
            ValueError,
        ),
    ],
    "Layers": [
        ("a number for the noise", lambda _: nk.NoisyLinear(2, 2, noise=0.1), TypeError),
        (
            "input of another width",
            lambda _: nk.NoisyLinear(4, 2, noise=NOISE)(torch.zeros(2, 3)),
            RuntimeError,
        ),
        (
            "input of another type",
            lambda _: nk.NoisyLinear(4, 2, noise=NOISE)(X.double()),
            RuntimeError,
        ),
        (
            "state for a model without noise",
            lambda _: nk.noise_state(net(), seed=0).__enter__(),
            ValueError,
        ),
    ],
    "Injection": [
        ("not a model", lambda _: nk.inject(torch.relu, NOISE), TypeError),
        ("a number for the noise", lambda _: injected(noise=0.1), TypeError),
        ("pattern that fits no module", lambda _: injected(where="fc1"), ValueError),
        (
            "pattern that fits no site",
            lambda _: injected(where="0:relu", example_input=X),
            ValueError,
        ),
        (
            "pattern of a map that fits no site",
            lambda _: injected(noise={"fc1": NOISE}),
            ValueError,
        ),
        ("where of another type", lambda _: injected(where=3), TypeError),
        (
            "where together with a map",
            lambda _: injected(noise={"0": NOISE}, where="0"),
            ValueError,
        ),
        ("repeats below 1", lambda _: injected(repeats=0), ValueError),
        ("repeats by number of a site", lambda _: injected(repeats={3: 2}), TypeError),
        ("noise by number of a site", lambda _: injected(noise={3: NOISE}), TypeError),
        ("a number for row_dims", lambda _: injected(row_dims=3), TypeError),
        ("row_dims by number of a site", lambda _: injected(row_dims={3: 0}), TypeError),
        ("a dimension that is a word", lambda _: injected(row_dims={"input": "x"}), TypeError),
        ("a switch that is a word", lambda _: injected(normalize_to_input_size="x"), TypeError),
        ("repeats at no site", lambda _: injected(repeats={"fc1": 2}), ValueError),
        ("the same model twice", lambda _: [nk.inject(m, NOISE) for m in [net()] * 2], ValueError),
        ("a model with an injected part", lambda _: part_first(), ValueError),
        ("a part of an injected model", lambda _: whole_first(), ValueError),
        ("injected model run by another", lambda _: nested(), RuntimeError),
        (
            "TorchScript inside",
            lambda _: injected(model=nn.Sequential(torch.jit.script(nn.ReLU()))),
            ValueError,
        ),
        ("batch_first=False, rows unknown", lambda _: nk.inject(recurrent(), NOISE), ValueError),
        ("example without rows", lambda _: injected(example_input=torch.zeros(0, 4)), ValueError),
        ("example that is no tensor", lambda _: injected(example_input=3), ValueError),
        ("operations depend on the number of rows", lambda _: nk.sites(Counts(), X), ValueError),
        ("sites without an example", lambda _: nk.sites(net()), ValueError),
        (
            "input without rows",
            lambda _: injected(torch.tensor(1.0), model=nn.Sequential(nn.ReLU())),
            RuntimeError,
        ),
        (
            "value that mixes rows",
            lambda _: injected(model=Mixing(), example_input=X),
            RuntimeError,
        ),
        ("packed sequence", lambda _: packed(), RuntimeError),
        (
            "batch norm in training, several draws",
            lambda _: training_mode_batch_norm(),
            RuntimeError,
        ),
        ("several inputs and draws, no example", lambda _: two_inputs(), RuntimeError),
    ],
    "Hardware": [
        ("one device that is none", lambda _: hardware(nk.Noise(add=0.1)), TypeError),
        ("noise of weights relative to a word", lambda _: nk.WeightNoise(add=0.1, relative="row"), ValueError),
        ("negative noise of conductances", lambda _: nk.hardware.DifferentialPair(-0.1), ValueError),
        ("no conductance", lambda _: nk.hardware.DifferentialPair(0.1, g_max=0.0), ValueError),
        ("no level", lambda _: nk.hardware.DifferentialPair(0.1, levels=0), ValueError),
        ("levels that are no number", lambda _: nk.hardware.DifferentialPair(0.1, levels=2.5), TypeError),
        ("largest weight of a word", lambda _: nk.hardware.PCM(over="column"), ValueError),
        ("time before programming", lambda _: nk.hardware.PCM(time=-1.0), ValueError),
        ("time of another type", lambda _: nk.hardware.PCM(time="day"), TypeError),
        ("converter of too many bits", lambda _: nk.hardware.DAC(32, 1.0), ValueError),
        ("signed converter of one bit", lambda _: nk.hardware.ADC(1, 1.0), ValueError),
        ("no limit", lambda _: nk.hardware.ADC(8, 0.0), ValueError),
        ("limit that depends on the batch", lambda _: nk.hardware.ADC(8, "batch"), ValueError),
        ("limits of other channels", lambda _: hardware(nk.hardware.ADC(8, torch.ones(5))), ValueError),
        ("rounding of another name", lambda _: nk.hardware.DAC(8, 1.0, rounding="up"), ValueError),
        ("a level for each column", lambda _: nk.hardware.ColumnOffset(torch.ones(3)), ValueError),
        (
            "the same stream twice",
            lambda _: hardware(nk.hardware.ColumnGain(0.1), nk.hardware.ColumnGain(0.2)),
            ValueError,
        ),
        ("two noises of the weights", lambda _: hardware(*[nk.WeightNoise(add=0.1)] * 2), ValueError),
        ("both terms, not folded", lambda _: nk.WeightNoise(add=0.1, mul=0.1), ValueError),
        ("negative noise of products", lambda _: nk.MacNoise(per_product=-0.1), ValueError),
        ("a reading for each channel", lambda _: nk.MacNoise(read=torch.ones(3)), ValueError),
        (
            "hardware of no site",
            lambda _: injected(noise=None, hardware={"fc1": [nk.hardware.DAC(6, "row")]}),
            ValueError,
        ),
        ("chips that are all the same", lambda _: nk.chips(net(), (X, Y), seed=0), ValueError),
        ("no chip", lambda _: nk.chips(net(), (X, Y), hardware=[WEIGHTS], draws=0, seed=0), ValueError),
        ("worst of no chip", lambda _: worst_of([0.9, 0.8], 0), ValueError),
        ("chips of a search", lambda _: searched().chips(), ValueError),
    ],
    "Arithmetic": [
        ("format of another name", lambda _: nk.Serial("fp12"), ValueError),
        ("format without mantissa", lambda _: nk.arithmetic.FloatFormat(0, 5), ValueError),
        ("values beyond float32", lambda _: nk.arithmetic.FloatFormat(4, 8, bias=100), ValueError),
        ("fixed point of too many bits", lambda _: nk.arithmetic.FixedFormat(40, 20), ValueError),
        ("fixed point that the data cannot hold", lambda _: nk.quantize(X, "L20R20"), ValueError),
        ("largest value that is none", lambda _: nk.arithmetic.FloatFormat(3, 4, largest=450.0), ValueError),
        ("rounding of no such name", lambda _: nk.arithmetic.FloatFormat(3, 4, rounding="up"), ValueError),
        ("limits without zero", lambda _: nk.Serial(low=1.0), ValueError),
        ("leak that grows", lambda _: nk.Serial(leak=1.5), ValueError),
        ("order of no such name", lambda _: nk.Serial(order="random"), ValueError),
        ("order that is no permutation", lambda _: nk.Serial(order=[0, 0, 1]), ValueError),
        ("order of another length", lambda _: hardware(nk.Serial(order=[1, 0])), ValueError),
        ("two arithmetics", lambda _: hardware(nk.Serial(), nk.Serial("fp16")), ValueError),
        ("arithmetic and noise of products", lambda _: hardware(nk.Serial(), nk.MacNoise(per_product=0.1)), ValueError),
        ("arithmetic that is none", lambda _: nk.linear(X, torch.zeros(3, 4), arithmetic="fp16"), TypeError),
        ("gradient of no such name", lambda _: nk.Serial(gradient="exact"), ValueError),
        ("parameter without values", lambda _: nk.walk_parameter(net(), (X, Y), saturated, [], seed=0), ValueError),
        ("no format to search", lambda _: nk.experiments.sweep_formats(net(), (X, Y), [], seed=0), ValueError),
    ],
    "Seed, draws, rows": [
        ("negative seed", lambda _: stated(seed=-1), ValueError),
        ("seed of 65 bits", lambda _: stated(seed=2**64), ValueError),
        ("seed of another type", lambda _: stated(seed=0.5), TypeError),
        ("number of draws instead of ids", lambda _: stated(draws=3), TypeError),
        ("no draw", lambda _: stated(draws=[]), ValueError),
        ("negative draw", lambda _: stated(draws=[-1]), ValueError),
        ("draw beyond 32 bits", lambda _: stated(draws=[2**32]), ValueError),
        ("draws as floats", lambda _: stated(draws=[0.0]), ValueError),
        ("rows by another word", lambda _: stated(rows="next"), ValueError),
        ("rows that are too few", lambda _: stated(rows=[1, 2]), RuntimeError),
        ("row beyond 32 bits", lambda _: stated(rows=[2**32] * 6), ValueError),
        ("negative level", lambda _: stated(level=-1.0), ValueError),
        ("a word for a level", lambda _: stated(level="low"), TypeError),
        ("a level larger than any float", lambda _: stated(level=10**400), ValueError),
        ("levels that are too few", lambda _: stated(level=[0.1, 0.2]), RuntimeError),
        ("levels of rank 2", lambda _: stated(level=torch.ones(6, 1)), TypeError),
    ],
    "Walk": [
        ("noise that is a number", lambda _: walk(noise=0.1), TypeError),
        ("no level", lambda _: walk(levels=[]), ValueError),
        ("negative level", lambda _: walk(levels=[-1.0]), ValueError),
        ("NaN level", lambda _: walk(levels=[NAN]), ValueError),
        ("the same level twice", lambda _: walk(levels=[1.0, 1.0]), ValueError),
        ("a number for the levels", lambda _: walk(levels=0.3), TypeError),
        ("a word for a level", lambda _: walk(levels=["a"]), TypeError),
        ("level beyond float32", lambda _: walk(levels=[1e39], noise=nk.Noise(add=1.0)), ValueError),
        (
            "level beyond float64",
            lambda _: walk(net().double(), (X.double(), Y), noise=nk.Noise(add=1e200), levels=[1e200]),
            ValueError,
        ),
        ("no draw", lambda _: walk(draws=0), ValueError),
        ("draws that are no number", lambda _: walk(draws=2.0), TypeError),
        ("the same draw twice", lambda _: walk(draws=[1, 1]), ValueError),
        ("draw beyond 32 bits", lambda _: walk(draws=[2**32]), ValueError),
        ("negative seed", lambda _: walk(seed=-1), ValueError),
        ("no rows in a pass", lambda _: walk(compute=nk.Compute(batch_rows=0)), ValueError),
        ("no draws in a pass", lambda _: walk(compute=nk.Compute(draws_per_pass=0)), ValueError),
        ("unknown site", lambda _: walk(sites=["fc1"]), ValueError),
        ("unknown site index", lambda _: walk(sites=[9]), ValueError),
        ("unknown target", lambda _: walk(target="bias"), ValueError),
        ("noise of weights at activations", lambda _: walk(noise=WEIGHTS), ValueError),
        ("mixed noise of weights", lambda _: walk(target="weight", noise=nk.Noise(1.0, 1.0)), ValueError),
        (
            "noise of weights that differs by channel",
            lambda _: walk(target="weight", noise=nk.Noise(add=torch.ones(1, 1, 4))),
            ValueError,
        ),
        ("weights of a model that has none", lambda _: walk(nn.ReLU(), target="weight"), ValueError),
        ("weights of a site that has none", lambda _: walk(target="weight", sites="1:relu"), ValueError),
        ("plateaus of noise on weights", lambda _: walk(target="weight", plateaus=0.03), ValueError),
        ("an empty list of noises", lambda _: walk(noise=[]), TypeError),
        ("plateaus of a search", lambda _: walk(levels=None, draws=None, plateaus=0.03), ValueError),
        ("plateaus that are everything", lambda _: walk(plateaus=1.0), ValueError),
        ("an executor that is a word", lambda _: walk(compute=nk.Compute(executor="dask")), TypeError),
        ("no processes", lambda _: walk(compute=nk.Compute(executor=0)), ValueError),
        ("ratio beyond 1", lambda _: nk.walk_mixed(net(), (X, Y), ratios=[2.0], seed=0), ValueError),
        ("more inputs than labels", lambda _: walk(data=(X, Y[:2])), ValueError),
        ("labels one-hot", lambda _: walk(data=(X, torch.zeros(6, 3))), ValueError),
        ("labels beyond the classes", lambda _: walk(data=(X, Y + 3)), ValueError),
        ("no data", lambda _: walk(data=(X[:0], Y[:0])), ValueError),
        ("empty iterable", lambda _: walk(data=[]), ValueError),
        ("single items instead of batches", lambda _: walk(data=[(X[0], 0)]), ValueError),
        ("rows that are too few", lambda _: walk(rows=[1]), ValueError),
        (
            "scores that are no matrix",
            lambda _: walk(model=nn.Sequential(nn.Linear(4, 3), nn.Unflatten(1, (3, 1)))),
            ValueError,
        ),
        ("site that mixes rows", lambda _: walk(model=Mixing()), RuntimeError),
        ("an injected model", lambda _: walk(model=nk.inject(net(), NOISE).model), ValueError),
    ],
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
    "Command line": [
        ("unknown model", lambda _: cli("walk", "--model", "vgg"), SystemExit),
        ("no level above 0", lambda _: cli("walk", "--levels", "0"), SystemExit),
        ("levels that are none", lambda _: cli("walk", "--levels", "log:0:1:3"), SystemExit),
        ("no command", lambda _: cli(), SystemExit),
        (
            "missing folder of the output",
            lambda f: cli("walk", "--out", f / "none" / "a.json"),
            SystemExit,
        ),
        (
            "levels of activations relative to weights",
            lambda f: cli("walk", "--relative", "layer", "--epochs", 0, "--cache", f),
            SystemExit,
        ),
        ("records of an unknown format", lambda _: cli("walk", "--export", "a.xls"), SystemExit),
        ("study that is not there", lambda f: cli("report", f / "a.json"), SystemExit),
        ("store that is not there", lambda f: cli("resume", f / "a.db"), SystemExit),
        ("comparison of one study", lambda _: cli("compare", "a.json"), SystemExit),
        ("store without a command", lambda f: cli("resume", unnoted(f)), SystemExit),
        (
            "checkpoint cut off",
            lambda f: cli("train", "--epochs", 1, "--cache", damaged(f, b"PK")["cache"]),
            SystemExit,
        ),
        (
            "no draw",
            lambda f: cli("walk", "--epochs", 0, "--draws", 0, "--quiet", "--cache", f),
            SystemExit,
        ),
        (
            "no rows",
            lambda f: cli("walk", "--epochs", 0, "--rows", 0, "--quiet", "--cache", f),
            SystemExit,
        ),
        (
            "ratio outside [0, 1]",
            lambda f: cli("walk", "--noise", "mixed", "--ratio", 2, "--epochs", 0, "--quiet", "--cache", f),
            SystemExit,
        ),
        ("unknown site", lambda f: cli("walk", "--sites", "fc9", "--epochs", 0, "--quiet", "--cache", f), SystemExit),
    ],
}


def attempt(action: Action) -> BaseException:
    """The error that a call ends with; its message free of temporary names."""
    with tempfile.TemporaryDirectory() as name:
        try:
            action(Path(name))
        except (SystemExit, Exception) as error:
            message = str(error).replace(name, "FOLDER")
            message = re.sub(r"^\w+, \S+\.cpp:\d+, ", "", message)  # where in the C++ source
            return type(error)(message)
    raise AssertionError("no error")


def render() -> str:
    """The document."""
    lines = [
        "# What can go wrong, and what it says",
        "",
        "Written by `python tests/helpers/bad_input.py` from the table that the tests run. Nothing is",
        "computed or changed when an error is raised. Values that cannot be read at no great cost",
        "(on a device, or in a compiled graph) are not checked: a bad level or id makes NaN there.",
    ]
    for area, cases in CASES.items():
        lines += ["", f"## {area}", "", "| what is wrong | error | message |", "| --- | --- | --- |"]
        for what, action, _ in cases:
            error = attempt(action)
            message = " ".join(str(error).split()).replace("|", "\\|")
            name = "exit" if isinstance(error, SystemExit) else type(error).__name__
            lines.append(f"| {what} | {name} | {message} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(render())
