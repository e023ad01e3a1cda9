"""Noisy training in the trainers of transformers and of Lightning, against loops written out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.training import Schedule

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*dataloader.*"),
]

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(1))
Y = torch.randint(3, (24,), generator=torch.Generator().manual_seed(2))
RAMP = Schedule([(0, 0.25), (8, 2.0)])
NOISE = nk.Noise(add=0.5)


@pytest.fixture(autouse=True)
def needed(request: pytest.FixtureRequest) -> None:
    """The package whose trainer a test is about."""
    pytest.importorskip("lightning" if "lightning" in request.node.name else "transformers")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.body(x)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def by_hand(epochs: int, accumulated: int = 1, level: Callable[[int], float] = RAMP) -> Tensor:
    """Plain gradient descent over the rows in order, four in a batch."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = list(zip(X.split(4), Y.split(4), strict=True)) * epochs
    with nk.inject(model, NOISE):
        for step in range(len(batches) // accumulated):
            with nk.noise_state(model, seed=7, draws=[step], level=level(step), advance=True):
                for x, y in batches[step * accumulated :][:accumulated]:
                    (model(x, y)["loss"] / accumulated).backward()
            optimizer.step()
            optimizer.zero_grad()
    return weights(model)


# ------------------------------------------------------------------------------------------------------ transformers


def trainer(folder: Path, callback: Any, model: nn.Module | None = None, **settings: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    asked = dict(
        output_dir=str(folder), per_device_train_batch_size=4, per_device_eval_batch_size=8, learning_rate=0.1,
        optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0, num_train_epochs=2, use_cpu=True, report_to=[],
        disable_tqdm=True, save_strategy="no", logging_steps=3, train_sampling_strategy="sequential",
        restore_callback_states_from_checkpoint=False,
    )  # fmt: skip
    rows = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    model = model or nk.inject(Net(), NOISE).model
    return transformers.Trainer(
        model, transformers.TrainingArguments(**asked | settings), train_dataset=rows, eval_dataset=rows,
        callbacks=[callback],
    )  # fmt: skip


@pytest.mark.parametrize("accumulated", [1, 3])
def test_trainer_is_the_loop(tmp_path: Path, accumulated: int) -> None:
    callback = nk.integrations.trainer_callback(seed=7, level=RAMP)
    one = trainer(tmp_path, callback, gradient_accumulation_steps=accumulated)
    one.train()
    torch.testing.assert_close(weights(one.model), by_hand(2, accumulated), rtol=1e-5, atol=1e-6)
    other = trainer(tmp_path, nk.integrations.trainer_callback(seed=8, level=RAMP))
    other.train()
    assert not torch.allclose(weights(one.model), weights(other.model), atol=1e-3)


@pytest.mark.parametrize("restored", [True, False])
@pytest.mark.parametrize("given", [None, 7, 9])
def test_a_resumed_trainer_has_the_bits_of_one_that_was_not_interrupted(
    tmp_path: Path, given: int | None, restored: bool
) -> None:
    settings: dict[str, Any] = dict(
        save_strategy="steps", save_steps=3, eval_strategy="steps", eval_steps=5, gradient_accumulation_steps=2,
        restore_callback_states_from_checkpoint=restored,
    )  # fmt: skip
    statistics = X[:5]
    callback = nk.integrations.trainer_callback(seed=7, level=RAMP, statistics=statistics)
    whole = trainer(tmp_path, callback, **settings)
    whole.train()
    state = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["NoiseCallback"] == {"args": {"seed": 7}, "attributes": {}}

    callback = nk.integrations.trainer_callback(seed=given, level=RAMP)  # whatever it was given
    resumed = trainer(tmp_path, callback, **settings)
    if given == 9:
        with pytest.warns(UserWarning, match="the checkpoint was trained with seed 7, and goes on with it"):
            resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    else:
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert torch.equal(weights(whole.model), weights(resumed.model))


def test_a_trainer_that_begins_to_be_noisy_at_a_checkpoint(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    plain = trainer(tmp_path, transformers.TrainerCallback(), Net(), save_strategy="steps", save_steps=3)
    plain.train()
    noisy = trainer(tmp_path, nk.integrations.trainer_callback(seed=7), save_strategy="steps", save_steps=3)
    noisy.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert not torch.equal(weights(plain.model), weights(noisy.model))


def test_evaluations_of_a_trainer_are_clean_or_noisy(tmp_path: Path) -> None:
    losses: dict[Any, list[float]] = {}
    for evaluation, size in [(0.0, 8), (1.0, 8), (1.0, 3)]:
        callback = nk.integrations.trainer_callback(seed=7, level=0.0, evaluation=evaluation)
        one = trainer(
            tmp_path, callback, eval_strategy="steps", eval_steps=4, learning_rate=0.0, per_device_eval_batch_size=size
        )
        one.train()
        losses[evaluation, size] = [r["eval_loss"] for r in one.state.log_history if "eval_loss" in r]
    with torch.no_grad():
        clean = float(Net()(X, Y)["loss"])
    assert losses[0.0, 8] == pytest.approx([clean] * 3, abs=1e-6)
    assert len(set(losses[1.0, 8])) == 1 and abs(losses[1.0, 8][0] - clean) > 1e-3  # the same noise each time
    assert losses[1.0, 3] == pytest.approx(losses[1.0, 8], abs=1e-6)  # whatever the batches


def test_a_trainer_logs_statistics(tmp_path: Path) -> None:
    callback = nk.integrations.trainer_callback(seed=7, level=RAMP, statistics=X[:5])
    one, without = trainer(tmp_path, callback), trainer(tmp_path, nk.integrations.trainer_callback(seed=7, level=RAMP))
    one.train(), without.train()
    assert torch.equal(weights(one.model), weights(without.model))  # measuring changes nothing
    records = [r for r in one.state.log_history if "loss" in r]
    assert [r["step"] for r in records] == [3, 6, 9, 12]
    for record in records:
        level = RAMP(record["step"] - 1)
        assert record["noise/level"] == pytest.approx(level)
        assert record["noise/body.0:linear#0/noise_power"] == pytest.approx((0.5 * level) ** 2)
        assert {"noise/input/snr_db", "noise/body.1:tanh#0/variance"} <= set(record)
    assert not any("noise" in key for r in without.state.log_history for key in r if key != "noise/level")


def test_what_a_trainer_leaves_behind(tmp_path: Path) -> None:
    callback = nk.integrations.trainer_callback(seed=7)
    one = trainer(tmp_path, callback)

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    step, one.training_step = one.training_step, fail
    with pytest.raises(KeyboardInterrupt):
        one.train()
    one.training_step = step
    one.train()  # begins anew
    assert torch.equal(weights(one.model), by_hand(2, level=lambda _: 1.0))
    with nk.noise_state(one.model, seed=3):
        x = one.model(X)["logits"]
    with nk.noise_state(one.model, seed=3):
        assert torch.equal(x, one.model(X)["logits"])
    with pytest.raises(ValueError, match="is not injected"):
        trainer(tmp_path, nk.integrations.trainer_callback(), Net()).train()


# --------------------------------------------------------------------------------------------------------- lightning


def lightning_module(model: nn.Module) -> Any:
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net, self.seen = model, []

        def training_step(self, batch: Any, _: int) -> Tensor:
            loss: Tensor = self.net(*batch)["loss"]
            return loss

        def validation_step(self, batch: Any, _: int) -> None:
            self.seen.append(self.net(batch[0])["logits"])

        test_step = validation_step

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()


def loader(size: int = 4) -> Any:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=size)


def fitted(folder: Path, callback: Any, checkpoint: Any = None, val: Any = None, **settings: Any) -> Any:
    lightning = pytest.importorskip("lightning.pytorch")
    asked: dict[str, Any] = dict(
        default_root_dir=folder, max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, log_every_n_steps=3,
    )  # fmt: skip
    module = lightning_module(nk.inject(Net(), NOISE).model)
    extra = settings.pop("callbacks", [])
    run = lightning.Trainer(callbacks=[callback, *extra], **asked | settings)
    run.fit(module, loader(), val, ckpt_path=checkpoint, weights_only=False)
    return run, module


@pytest.mark.parametrize("accumulated", [1, 3])
def test_lightning_is_the_loop(tmp_path: Path, accumulated: int) -> None:
    callback = nk.integrations.lightning_callback(seed=7, level=RAMP)
    # evaluations in the middle of an accumulated step leave its noise as it is
    settings: dict[str, Any] = dict(accumulate_grad_batches=accumulated, val_check_interval=2)
    _, module = fitted(tmp_path, callback, val=loader(), **settings)
    torch.testing.assert_close(weights(module), by_hand(2, accumulated), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("given", [None, 7])
def test_a_resumed_lightning_run_has_the_bits_of_one_that_was_not_interrupted(
    tmp_path: Path, given: int | None
) -> None:
    pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.callbacks import ModelCheckpoint

    keeping = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=6)
    callback = nk.integrations.lightning_callback(seed=7, level=RAMP)
    _, whole = fitted(tmp_path, callback, callbacks=[keeping], enable_checkpointing=True)
    callback = nk.integrations.lightning_callback(seed=given, level=RAMP)
    run, resumed = fitted(tmp_path, callback, tmp_path / "step=6.ckpt")
    assert run.global_step == 12
    assert torch.equal(weights(whole), weights(resumed)) and callback.noise.seed == 7


def test_evaluations_and_statistics_of_lightning(tmp_path: Path) -> None:
    found = {}
    for evaluation, size in [(0.0, 8), (1.0, 8), (1.0, 3)]:
        callback = nk.integrations.lightning_callback(seed=7, evaluation=evaluation, statistics=X[:5])
        run, module = fitted(tmp_path, callback, val=loader(size))
        assert run.logged_metrics["noise/body.0:linear#0/noise_power"] == pytest.approx(0.25)
        assert run.logged_metrics["noise/level"] == 1.0
        module.seen.clear()
        run.test(module, loader(size), verbose=False)
        found[evaluation, size] = torch.cat(module.seen)
    with nk.noise_state(module, level=0.0), torch.no_grad():
        torch.testing.assert_close(found[0.0, 8], module.net(X)["logits"])
    torch.testing.assert_close(found[1.0, 3], found[1.0, 8])
    assert (found[1.0, 8] - found[0.0, 8]).abs().max() > 0.1


# --------------------------------------------------------------------------------------------------------------- both


BOTH = [("trainer_callback", "transformers"), ("lightning_callback", "lightning.pytorch")]


@pytest.mark.parametrize(("name", "package"), BOTH)
def test_a_seed_that_is_not_given_is_torchs(name: str, package: str) -> None:
    pytest.importorskip(package)
    make = getattr(nk.integrations, name)
    torch.manual_seed(3)
    one, two = make(), make()
    torch.manual_seed(3)
    assert make().noise.seed == one.noise.seed != two.noise.seed
    with pytest.raises(TypeError, match=r"seed must be a whole number from .* or None, got 1\.5"):
        make(seed=1.5)
    with pytest.raises(ValueError, match="level must be finite and not negative"):
        make(level=-1.0)
