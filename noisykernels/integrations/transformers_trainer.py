"""A callback of transformers' `Trainer` for training with noise; what it does is in `steps`."""

from __future__ import annotations

from typing import Any

from noisykernels._util.arguments import check_arguments
from noisykernels._util.data import Data
from noisykernels._util.optional import optional
from noisykernels.integrations.steps import NoisySteps
from noisykernels.training.schedules import Level

__all__ = ["trainer_callback"]


def trainer_callback(
    *, seed: int | None = None, level: Level = 1.0, evaluation: float = 0.0, statistics: Data | None = None
) -> Any:
    """A ``TrainerCallback`` of transformers: each step of training has noise of its own, at the level that is its due.

    The draw is the number of the step, so that noise never repeats, and each call within a step (gradient accumulation)
    has noise of its own under it. The seed is kept in checkpoints: a run that is resumed from one goes on with the bits
    that it would have had. Of several processes each has draws of its own.

    Args:
        seed: 64-bit seed of the noise; None draws one from torch's default generator.
        level: factor of all noise of the model in training: a number, or a function ``(step, rows)``, such as a
            `Schedule`; ``rows`` are None here.
        evaluation: factor of all noise in evaluations during training; 0: they are clean. Each evaluation has the same
            noise, whatever the size of its batches.
        statistics: a few rows of data, in any of the forms of ``docs/guides/data.md``; with each log of the loss
            `site_statistics` of the noisy sites are logged as ``noise/SITE/snr_db``, ``noise/SITE/noise_power`` and
            ``noise/SITE/variance``. ``noise/level`` is logged in any case.

    Returns:
        The callback, for ``Trainer(callbacks=[...])``. The model must be injected, or have noisy layers.

    Raises:
        TypeError, ValueError: see `noise_state`.
        ModuleNotFoundError: transformers is not installed.

    Note:
        What is logged is added to the loss's record in ``trainer.state.log_history``, and shown to the callbacks behind
        this one; those of ``report_to`` stand before it, unless it is put first:
        ``trainer.callback_handler.callbacks.insert(0, callback)``.
        ``trainer.evaluate()`` outside of a training is in no block: put one of `noise_state` around it.
    """
    check_arguments(trainer_callback, locals())
    checked = NoisySteps("trainer_callback", seed, level, evaluation, statistics)
    module = optional("transformers.trainer_callback", "models")

    class NoiseCallback(module.TrainerCallback, module.ExportableState):  # type: ignore[misc, name-defined]
        """Made anew by the trainer, from what `state` gave, where ``restore_callback_states_from_checkpoint`` is on."""

        def __init__(self, seed: int = checked.seed) -> None:
            self.noise = checked
            if seed != checked.seed:
                checked.restore({"seed": seed})

        def state(self) -> dict[str, Any]:
            return {"args": self.noise.state(), "attributes": {}}

        def on_train_begin(self, args: Any, state: Any, *_: Any, model: Any, **more: Any) -> None:
            # A checkpoint's, or of a new run our own; the trainer asks for it when it saves.
            kept = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
            self.noise.restore(kept["args"])
            self.noise.end()  # of a training that an error has ended
            self.noise.begin_evaluation(model, args.process_index)

        def on_step_begin(self, args: Any, state: Any, *_: Any, model: Any, **more: Any) -> None:
            self.noise.begin_step(model, state.global_step, args.process_index, args.world_size)

        def on_step_end(self, args: Any, state: Any, *_: Any, model: Any, **more: Any) -> None:
            self.noise.leave()
            self.noise.begin_evaluation(model, args.process_index)

        def on_evaluate(self, args: Any, state: Any, *_: Any, model: Any, **more: Any) -> None:
            if self.noise.is_on:
                self.noise.begin_evaluation(model, args.process_index)

        def on_log(self, args: Any, state: Any, *_: Any, model: Any, logs: Any, **more: Any) -> None:
            if self.noise.is_on and "loss" in logs:
                found = self.noise.logged(model, max(0, state.global_step - 1))
                logs.update(found)
                state.log_history[-1].update(found)

        def on_train_end(self, args: Any, state: Any, *_: Any, **more: Any) -> None:
            self.noise.end()

    return NoiseCallback()
