"""A callback of Lightning's `Trainer` for training with noise; what it does is in `steps`."""

from __future__ import annotations

from typing import Any

from noisykernels._util.arguments import check_arguments
from noisykernels._util.data import Data
from noisykernels._util.optional import optional
from noisykernels.integrations.steps import NoisySteps
from noisykernels.training.schedules import Level

__all__ = ["lightning_callback"]


def lightning_callback(
    *, seed: int | None = None, level: Level = 1.0, evaluation: float = 0.0, statistics: Data | None = None
) -> Any:
    """A ``Callback`` of Lightning: each step of training has noise of its own, at the level that is its due.

    The same as `trainer_callback` in Lightning: the draw is ``trainer.global_step``, batches whose gradients are
    accumulated have noise of their own under it, and the seed is kept in checkpoints.

    Args:
        seed, level: see `trainer_callback`.
        evaluation: factor of all noise in validation, test and prediction; 0: they are clean.
        statistics: see `trainer_callback`; rows for the model that is injected. Logged, with ``noise/level``, by
            ``LightningModule.log_dict`` every ``log_every_n_steps`` steps.

    Returns:
        The callback, for ``Trainer(callbacks=[...])``. The module, or a model in it, must be injected, or have noisy
        layers.

    Raises:
        TypeError, ValueError: see `noise_state`.
        ModuleNotFoundError: lightning is not installed.
    """
    check_arguments(lightning_callback, locals())
    noise = NoisySteps("lightning_callback", seed, level, evaluation, statistics)
    module = optional("lightning.pytorch", "models")

    class NoiseCallback(module.Callback):  # type: ignore[misc, name-defined]
        """Training and evaluations, which may come in the middle of a step, have blocks of their own."""

        def __init__(self) -> None:
            self.noise = noise

        def state_dict(self) -> dict[str, Any]:
            return noise.state()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            noise.restore(state_dict)

        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            noise.begin_step(pl_module, trainer.global_step, trainer.global_rank, trainer.world_size)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            step = trainer.global_step
            if noise.step != step and step % trainer.log_every_n_steps == 0:  # the step is over
                pl_module.log_dict(noise.logged(pl_module, step - 1))

        def _begin_evaluation(self, trainer: Any, pl_module: Any) -> None:
            noise.begin_evaluation(pl_module, trainer.global_rank)

        def _leave(self, trainer: Any, pl_module: Any) -> None:
            noise.leave()

        def _end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            noise.end()

        on_validation_start = on_test_start = on_predict_start = _begin_evaluation
        on_validation_end = on_test_end = on_predict_end = _leave
        on_train_end = on_exception = _end

    return NoiseCallback()
