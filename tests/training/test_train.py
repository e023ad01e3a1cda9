"""Training, augmentation, accuracy, checkpoints: correct, reproducible, no trace elsewhere."""

from __future__ import annotations

import contextlib
import doctest
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noisykernels.datasets import augment
from noisykernels.datasets import vision as data
from noisykernels.training import loop as train
from noisykernels.zoo import checkpoint, pretrained

Record = dict[str, float]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bit equality is promised for a fixed number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return data.load("digits"), data.load("digits", "test")


def weights(model: nn.Module) -> Tensor:
    """All parameters and buffers in one vector."""
    return torch.cat([value.detach().double().flatten() for value in model.state_dict().values()])


def fit(digits: Any, seed: int = 0, name: str = "mlp-bn", **options: Any) -> tuple[nn.Module, list[Record]]:
    model = pretrained.fresh(name, "digits", seed=seed)
    options = {"epochs": 2, "seed": seed, **options}
    return model, train.train(model, digits[0], **options)


# --- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "bound"), [("mlp", 0.85), ("mlp-bn", 0.94)])
def test_digits_are_learnt(digits: Any, name: str, bound: float) -> None:
    """Over seeds 0 to 11 the accuracies were 0.907 to 0.944 and 0.969 to 0.986, the ratio of the
    losses at most 0.14; the bounds lie below by more than the whole spread."""
    model, history = fit(digits, name=name, epochs=15, batch_size=64, val=digits[1])
    assert train.accuracy(model, digits[1]) > bound
    assert history[-1]["val_accuracy"] == train.accuracy(model, digits[1])
    assert history[-1]["loss"] < history[0]["loss"] / 3


def test_the_published_recipe(digits: Any) -> None:
    """Step by step the same as Adam, cosine annealing and cross-entropy written out by hand."""
    inputs, labels = (part[:96] for part in digits[0])
    model, reference = (pretrained.fresh("mlp-bn", "digits") for _ in range(2))
    history = train.train(model, (inputs, labels), epochs=3, batch_size=32, seed=5)
    generator = torch.Generator().manual_seed(5)
    optimizer = torch.optim.Adam(reference.parameters(), lr=1e-3, betas=(0.9, 0.999), weight_decay=0)
    for epoch in range(3):
        rate = 1e-3 * (1 + math.cos(math.pi * epoch / 3)) / 2
        assert history[epoch]["lr"] == pytest.approx(rate, rel=1e-12)  # a few double roundings
        order = torch.randperm(96, generator=generator)
        assert sorted(order.tolist()) == list(range(96))
        optimizer.param_groups[0]["lr"] = history[epoch]["lr"]
        for rows in order.split(32):
            optimizer.zero_grad()
            (-reference(inputs[rows]).log_softmax(1)[range(32), labels[rows]].mean()).backward()
            optimizer.step()
    # Two ways to write cross-entropy: gradients differ by float32 roundings, to which Adam's step
    # is insensitive unless a gradient is near its epsilon; one wrong step would be lr = 1e-3.
    torch.testing.assert_close(weights(model), weights(reference), rtol=0, atol=1e-4)


def test_same_seed_same_bits_and_other_seed_other_weights(digits: Any) -> None:
    options = {"augment": augment.augmentation("fashion-mnist")}
    first, history = fit(digits, 1, **options)
    torch.randn(3)  # the global generator's state must not matter
    second, again = fit(digits, 1, **options)
    assert torch.equal(weights(first), weights(second))
    assert [r["loss"] for r in history] == [r["loss"] for r in again]
    assert not torch.equal(weights(first), weights(fit(digits, 2, **options)[0]))
    assert not torch.equal(weights(first), weights(fit(digits, 1)[0]))  # augmentation does something


def test_global_generator_is_untouched(digits: Any, tmp_path: Path) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    fit(digits, epochs=1, augment=augment.crop_flip)
    pretrained.trained("mlp", "digits", epochs=1, limit=100, cache=tmp_path)
    pretrained.trained("mlp", "digits", epochs=1, limit=100, cache=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_fresh_depends_on_the_seed_alone() -> None:
    first = weights(pretrained.fresh("lenet5", "mnist", seed=3))
    torch.manual_seed(99)
    assert torch.equal(weights(pretrained.fresh("lenet5", "mnist", seed=3)), first)
    assert not torch.equal(weights(pretrained.fresh("lenet5", "mnist", seed=4)), first)


def test_clamp_holds_after_every_step_but_not_for_batch_norm_and_biases(digits: Any) -> None:
    model = pretrained.fresh("mlp-bn", "digits")
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    seen: list[float] = []

    def largest(values: Any) -> float:
        return max(float(value.detach().abs().max()) for value in values)

    def watch(step: int, rows: Tensor) -> None:
        seen.append(largest(layer.weight for layer in linear))

    train.train(model, digits[0], epochs=2, clamp=0.05, lr=0.02, on_step=watch)
    assert seen[0] > 0.05 and max(seen[1:]) == pytest.approx(0.05)  # before and after the first step
    assert largest([model.norm1.weight]) > 0.5  # starts at 1
    assert largest(layer.bias for layer in linear) > 0.05


def test_accuracy_of_an_exported_program(digits: Any) -> None:
    """Whose train() and eval() raise."""
    model, (inputs, labels) = pretrained.fresh("mlp-bn", "digits").eval(), digits[1]
    exported = torch.export.export(model, (inputs[:100],)).module()
    data = inputs[:100], labels[:100]
    assert train.accuracy(exported, data) == train.accuracy(model, data)


def test_a_part_that_the_model_keeps_in_evaluation_mode_stays_there(digits: Any) -> None:
    class Frozen(nn.Sequential):
        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            self[1].eval()
            return self

    model = Frozen(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
    train.train(model, digits[0], epochs=1)
    assert int(model[1].num_batches_tracked) == 0 and model[2].training


def test_on_step_gets_the_rows_of_the_batch_and_may_wrap_the_step(digits: Any) -> None:
    """Rows are those whose inputs the model sees; forward and backward run inside the manager."""
    inputs, labels = digits[0][0][:70], digits[0][1][:70]
    model, events, seen = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), [], []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    model[1].weight.register_hook(lambda _: events.append("backward"))

    @contextlib.contextmanager
    def around(step: int, rows: Tensor) -> Iterator[None]:
        events.append(step)
        yield
        assert torch.equal(seen[-1], inputs[rows]) and rows.dtype == torch.int64
        events.append("end")
        order.extend(rows.tolist())

    order: list[int] = []
    train.train(model, (inputs, labels), epochs=2, batch_size=32, on_step=around)
    expected = [[step, "backward", "end"] for step in range(6)]
    assert events == [event for step in expected for event in step]
    for epoch in (order[:70], order[70:]):
        assert sorted(epoch) == list(range(70))
    assert order[:70] != order[70:]


def test_last_batch_of_one_row_joins_the_one_before(digits: Any) -> None:
    few = tuple(part[:65] for part in digits[0])
    sizes: list[int] = []
    model = pretrained.fresh("mlp-bn", "digits")
    train.train(model, few, epochs=1, batch_size=32, on_step=lambda _, rows: sizes.append(len(rows)) or None)  # type: ignore[func-returns-value, arg-type]
    assert sizes == [32, 33]


def test_records_and_callbacks(digits: Any, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Record] = []
    _, history = fit(digits, progress=True, on_epoch=seen.append, val=digits[1])
    assert seen == history and [r["epoch"] for r in history] == [1, 2]
    assert set(history[0]) == {"epoch", "lr", "loss", "accuracy", "val_accuracy", "seconds"}
    captured = capsys.readouterr()
    assert captured.out == "" and "training" in captured.err


def test_progress_without_tqdm(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert len(fit(digits, progress=True, epochs=1)[1]) == 1


def test_bad_arguments(digits: Any) -> None:
    x, y = digits[0]
    for bad, message in (
        ((x, y[1:]), "as many inputs as labels"),
        ((x[:0], y[:0]), "at least one"),
        ((x, y.float()), "data must have labels of int64"),
    ):
        with pytest.raises(ValueError, match=message):
            train.accuracy(nn.Identity(), bad)
        with pytest.raises(ValueError, match=message):
            train.train(nn.Linear(1, 1), bad, epochs=1)
    for name, bad in (("epochs", -1), ("batch_size", 0), ("clamp", 0.0), ("clamp", math.nan)):
        with pytest.raises(ValueError, match=f"train: {name} must be .*, got {bad}"):
            fit(digits, **{name: bad})
    untrained, history = fit(digits, epochs=0)
    assert history == [] and torch.equal(weights(untrained), weights(pretrained.fresh("mlp-bn", "digits")))


# --- modes and accuracy --------------------------------------------------------------------------


def test_modes_are_put_back(digits: Any) -> None:
    model = pretrained.fresh("mlp-bn", "digits")
    model.norm2.eval()  # a mixture must survive
    before = {name: module.training for name, module in model.named_modules()}
    statistics = model.norm1.running_mean.clone()
    train.accuracy(model, digits[1])
    assert torch.equal(model.norm1.running_mean, statistics)  # evaluation mode inside
    train.train(model, digits[0], epochs=1)
    assert not torch.equal(model.norm1.running_mean, statistics)  # training mode inside
    with pytest.raises(RuntimeError):
        train.accuracy(model, (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)))
    assert {name: module.training for name, module in model.named_modules()} == before


def test_accuracy_counts_and_does_not_depend_on_the_batch(digits: Any) -> None:
    model = pretrained.fresh("mlp-bn", "digits")
    inputs, labels = digits[1]
    with torch.no_grad():
        expected = (model.eval()(inputs).argmax(1) == labels).double().mean().item()
    for size in (1, 7, 355, 1000):
        assert train.accuracy(model, digits[1], size) == pytest.approx(expected, abs=1e-12)


# --- augmentation --------------------------------------------------------------------------------


def test_crop_flip_is_a_window_of_the_padded_image_or_its_mirror() -> None:
    """Every result is found among all 162 possible ones, and all of them occur."""
    image = torch.arange(2.0 * 6 * 5).view(1, 2, 6, 5)
    canvas = torch.tensor([-1.0, -2.0]).view(2, 1, 1).repeat(1, 14, 13)
    canvas[:, 4:10, 4:9] = image[0]
    possible = {}
    for down in range(9):
        for right in range(9):
            window = canvas[:, down : down + 6, right : right + 5]
            possible[tuple(window.flatten().tolist())] = (down, right, 0)
            possible[tuple(window.flip(-1).flatten().tolist())] = (down, right, 1)
    generator = torch.Generator().manual_seed(0)
    # 20,000 tries: the chance to miss one of 162 is below 162 * exp(-20000 / 162) < 1e-50.
    out = augment.crop_flip(image.expand(20_000, -1, -1, -1), generator, fill=(-1.0, -2.0))
    counts: dict[tuple[int, int, int], int] = {}
    for row in out.flatten(1).tolist():
        key = possible[tuple(row)]
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == len(possible) == 162
    assert max(counts.values()) < 20_000 / 162 * 1.7  # 7.8 standard deviations of a fair count


def test_augmentation_pads_with_black() -> None:
    pad = augment.augmentation("cifar10")
    assert pad is not None
    black = torch.tensor(data.info("cifar10").black).view(1, 3, 1, 1)
    image = black.expand(50, 3, 32, 32)
    assert torch.equal(pad(image, torch.Generator().manual_seed(0)), image)


# --- checkpoints ---------------------------------------------------------------------------------

SETTINGS: dict[str, Any] = {"epochs": 1, "seed": 0, "limit": 100}


class Trap:
    """Unpickled without care, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def get(folder: Path, **changed: Any) -> nn.Module:
    return pretrained.trained("mlp-bn", "digits", cache=folder, **{**SETTINGS, **changed})


def test_second_call_reads_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = get(tmp_path)
    assert not first.training and len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(train, "train", None)  # training again would fail
    assert torch.equal(weights(get(tmp_path)), weights(first))


def test_every_setting_is_in_the_key(tmp_path: Path) -> None:
    get(tmp_path)
    changes = {
        "epochs": 2,
        "seed": 1,
        "lr": 0.01,
        "batch_size": 32,
        "augment": False,
        "clamp": 1,
        "limit": 99,
    }
    for name, value in changes.items():
        get(tmp_path, **{name: value})
    assert len(list(tmp_path.iterdir())) == 1 + len(changes)
    get(tmp_path, clamp=1.0)  # the same number
    assert len(list(tmp_path.iterdir())) == 1 + len(changes)


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "pickle", "other object", "weights"])
def test_damaged_checkpoint_is_refused_and_kept(tmp_path: Path, damage: str) -> None:
    get(tmp_path)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    if damage == "other object":
        torch.save([1, 2], path)
    elif damage == "pickle":
        torch.save({"format": 1, "settings": Trap(tmp_path / "trap")}, path)
    elif damage == "weights":
        content = torch.load(path, weights_only=True)
        del content["state_dict"]["fc1.weight"]
        torch.save(content, path)
    else:
        path.write_bytes({"cut": good[: len(good) // 2], "text": b"<html>", "empty": b""}[damage])
    bad = path.read_bytes()
    with pytest.raises(checkpoint.CheckpointError, match="delete it") as caught:
        get(tmp_path)
    assert str(path) in str(caught.value) and path.read_bytes() == bad
    if damage not in ("other object", "weights"):  # one short line, whatever torch says
        kind = type(caught.value.__cause__).__name__
        assert str(caught.value) == f"{path}: not a readable checkpoint ({kind}); delete it to train again"
    assert list(tmp_path.iterdir()) == [path]  # no code of the file was run
    path.unlink()
    get(tmp_path)


def test_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    get(tmp_path)
    (path,) = tmp_path.iterdir()
    other = get(tmp_path / "other", seed=1)
    (source,) = (tmp_path / "other").iterdir()
    path.write_bytes(source.read_bytes())
    with pytest.raises(checkpoint.CheckpointError, match=r"expected settings .*'seed': 0.*'seed': 1"):
        get(tmp_path)
    assert torch.equal(weights(get(tmp_path / "other", seed=1)), weights(other))


def test_interrupted_training_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(tmp_path / "a", on_epoch=interrupt)
    assert not (tmp_path / "a").exists()

    def half(_: object, file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        get(tmp_path / "b")
    assert list((tmp_path / "b").iterdir()) == []


def test_default_folder_of_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOISYKERNELS_DATA", str(tmp_path))
    assert checkpoint.checkpoint_path({"model": "mlp"}).parent == tmp_path / "checkpoints"


def test_examples() -> None:
    assert doctest.testmod(train).failed == 0
    assert doctest.testmod(augment) == (0, 2)
    assert doctest.testmod(checkpoint) == (0, 1)
