"""Models of transformers, at small configurations, given what their own tokenizers and processors give."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor, nn

from models.inputs import Made, tokens

__all__ = ["TRANSFORMERS"]

VOCABULARY, LENGTH = 40, 8
SMALL = dict(
    vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
    max_position_embeddings=32,
)  # fmt: skip


def words(rows: int) -> dict[str, Tensor]:
    """Tokens by name."""
    return {"input_ids": tokens(LENGTH, VOCABULARY)(rows)}


def _of(model: str, config: str, attention: str = "sdpa", **how: Any) -> Made:
    """A model by the names of its class and its configuration's."""

    def build() -> nn.Module:
        package = importlib.import_module("transformers")
        return getattr(package, model)(getattr(package, config)(attn_implementation=attention, **how))

    return Made(build, words, package="transformers")


TRANSFORMERS = {
    "BERT": _of("BertForSequenceClassification", "BertConfig", **SMALL),
}
