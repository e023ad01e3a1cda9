"""Models of transformers with noise for lm-eval: as `lm_eval` with a model `nk-hf` more, or from Python.

``python -m noisykernels.integrations.harness --model nk-hf --model_args pretrained=DIR,level=0.1,where=*_proj ...`` is
``lm_eval`` of the same arguments: what is told of the noise are the flags of our command line, by name.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from torch import Tensor

from noisykernels._util.checks import shown
from noisykernels._util.optional import optional
from noisykernels.cli.noises import add_inside, add_laws, add_seed, add_target, add_terms, noise_of
from noisykernels.cli.reading import LEVELS, Number
from noisykernels.injection.api import inject
from noisykernels.injection.setting import noise_state
from noisykernels.noise.contract import ID_LIMIT
from noisykernels.noise.tokens import TokenRows

__all__ = ["lm_eval_model"]

NAME = "nk-hf"


class _Flags(argparse.ArgumentParser):
    """The flags of the noise, of which arguments of a model are made."""

    def __init__(self) -> None:
        super().__init__(allow_abbrev=False, add_help=False)
        for add in (add_terms, add_laws, add_target, add_seed, add_inside):
            add(self)
        self.add_argument("--level", type=Number(LEVELS), required=True)

    def error(self, message: str) -> NoReturn:
        """As for any wrong argument of a model."""
        raise ValueError(f"{NAME}: {message.replace('--', '')}")


FLAGS = tuple(action.dest for action in _Flags()._actions)


def _understood(where: str | Sequence[str] | None, told: dict[str, Any]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """What is asked for, and the arguments of `inject` that place it."""
    if not isinstance(where, str | list | tuple | None):
        raise TypeError(f"{NAME}: where must be names or patterns, got {shown(where)}")
    words = where.split() if isinstance(where, str) else where
    asked = _Flags().parse_args([f"--{name}={value}" for name, value in told.items()])
    noise = noise_of(asked).scaled(asked.level)
    if asked.target == "activation":
        return asked, dict(noise=noise, where=words)
    return asked, dict(noise=None, hardware=[noise] if words is None else {word: [noise] for word in words})


@functools.cache
def lm_eval_model() -> Any:
    """The class of lm-eval's model ``nk-hf``, which from then on lm-eval knows by that name.

    It is lm-eval's ``hf`` with noise. Its arguments are those of ``hf`` and, as the flags of the command line are
    called, ``level``, ``noise`` (add, mul, mixed), ``ratio``, ``order``, ``kind``, ``relative``, ``target``
    (activation, weight), ``seed`` and ``detail``; ``where`` has names and patterns as in `inject`, with spaces between
    them.

    A token's noise is a function of (seed, site, the tokens of its sequence, position, element): sizes of batches,
    padding, the order of requests, other tasks, caches of lm-eval and processes change no bit of it. Ids of sequences
    are made of a hash; where positions leave too few of them (2^32 / ``max_length``) two texts may meet the same noise.

    Returns:
        The class, a subclass of ``lm_eval.models.huggingface.HFLM``.

    Raises:
        ModuleNotFoundError: lm-eval is not installed.
    """
    hf = optional("lm_eval.models.huggingface", "models").HFLM

    class NoisyHF(hf):  # type: ignore[misc, valid-type]
        """See `lm_eval_model`."""

        def __init__(self, *args: Any, where: Any = None, **kwargs: Any) -> None:
            asked, placed = _understood(where, {name: kwargs.pop(name) for name in FLAGS if name in kwargs})
            self.noise_seed = asked.seed
            super().__init__(*args, **kwargs)
            inject(self.model, **placed, detail=asked.detail)

        @contextmanager
        def _noisy(self, ids: Tensor, *more: Tensor) -> Iterator[None]:
            """A block in which the rows of a batch have the noise of their tokens."""
            sequence = _hashed([ids, *more], ID_LIMIT // self.max_length)
            with noise_state(self.model, seed=self.noise_seed, rows=TokenRows(self.max_length, sequence)):
                yield

        def _model_call(self, inps: Tensor, attn_mask: Any = None, labels: Any = None) -> Tensor:
            with self._noisy(inps, *([] if labels is None else [labels])):
                logits: Tensor = super()._model_call(inps, attn_mask, labels)
            return logits

        def _model_generate(self, context: Tensor, *args: Any, attention_mask: Tensor, **kwargs: Any) -> Tensor:
            with self._noisy(context * attention_mask):
                made: Tensor = super()._model_generate(context, *args, attention_mask=attention_mask, **kwargs)
            return made

    registry = optional("lm_eval.api.registry", "models")
    optional("lm_eval.models", "models")  # which fills the registry only where it is empty
    registry.register_model(NAME)(NoisyHF)
    return NoisyHF


def _hashed(parts: Sequence[Tensor], count: int) -> list[int]:
    """A number below `count` of each row, by its tokens without the zeros around them, which are padding."""
    rows = zip(*(part.tolist() for part in parts), strict=True)
    texts = [repr([_trimmed(tokens) for tokens in row]) for row in rows]
    return [int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") % count for text in texts]


def _trimmed(tokens: list[int]) -> list[int]:
    held = [i for i, token in enumerate(tokens) if token]
    return tokens[held[0] : held[-1] + 1] if held else []


if __name__ == "__main__":
    lm_eval_model()
    optional("lm_eval.__main__", "models").cli_evaluate()
