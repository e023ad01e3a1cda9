"""What trainers and harnesses of others ask for to run noisy models; knows a tool only by name till it is asked for."""

from noisykernels.integrations.harness import lm_eval_model
from noisykernels.integrations.lightning_trainer import lightning_callback
from noisykernels.integrations.transformers_trainer import trainer_callback

__all__ = ["lightning_callback", "lm_eval_model", "trainer_callback"]
