"""What other people's tools ask for, to train and to measure noisy models in them; each is imported when it is asked
for."""

from noisykernels.integrations.harness import lm_eval_model
from noisykernels.integrations.lightning_trainer import lightning_callback
from noisykernels.integrations.transformers_trainer import trainer_callback

__all__ = ["lightning_callback", "lm_eval_model", "trainer_callback"]
