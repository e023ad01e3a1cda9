"""A classifier trained with noise by Lightning: a ramp, clean validation, noise that is validated too.

Needs the extra `models`.
"""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import noisykernels as nk

X = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


class Classifier(pl.LightningModule):
    """Three classes, by two of eight numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nk.inject(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)), nk.Noise(add=0.5)).model

    def training_step(self, batch, _):
        """The loss of a batch."""
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, _) -> None:
        """The share that is right."""
        self.log("accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def run() -> dict[float, float]:
    """Accuracy of clean and of noisy evaluations."""
    found = {}
    for evaluation in (0.0, 1.0):
        noise = nk.integrations.lightning_callback(
            seed=1, level=nk.training.Schedule.ramp(20), evaluation=evaluation, statistics=X[:32]
        )
        trainer = pl.Trainer(
            max_epochs=3, accelerator="cpu", callbacks=[noise], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=4,
        )  # fmt: skip
        data = DataLoader(TensorDataset(X, Y), batch_size=32)
        trainer.fit(Classifier(), data, data)
        found[evaluation] = float(trainer.callback_metrics["accuracy"])
        print(f"evaluations at {evaluation} of the noise: accuracy {found[evaluation]:.2f},",
              f"SNR of scores {float(trainer.logged_metrics['noise/2:linear#0/snr_db']):.0f} dB")  # fmt: skip
    return found


if __name__ == "__main__":
    run()
