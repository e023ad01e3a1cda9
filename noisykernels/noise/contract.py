"""Names and numbers that the noise contract fixes: kinds, streams, ids, numbers of sites, the largest eps."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch  # noqa: F401  # the compiled module needs torch's libraries in the process

from noisykernels._C import STREAM_VERSION, build_info, noise_bounds, noise_kinds, operands

__all__ = [
    "ID_LIMIT",
    "KINDS",
    "MODES",
    "OPERANDS",
    "SITE_LIMIT",
    "STATISTICS",
    "STREAM_VERSION",
    "build_info",
    "hashed_id",
    "hashed_number",
    "largest_eps",
    "site_ids",
    "stream_number",
]


KINDS: tuple[str, ...] = tuple(noise_kinds())
OPERANDS: tuple[str, ...] = tuple(operands())
MODES = ("add", "mul", "mul_add", "add_mul", "fold")  # the order of `Mode` in noise.h
STATISTICS = ("rms", "max", "std")  # of a row: the order of `Statistic` in params.h
ID_LIMIT = 2**32  # draws and rows are 32-bit counter words

_BOUNDS = dict(zip(KINDS, noise_bounds(), strict=True))


def largest_eps(kind: str) -> float:
    """Bound of the raw noise of a kind.

    Example:
        >>> round(largest_eps("gaussian"), 1)
        6.7
    """
    return _BOUNDS[kind] * (1 + 2**-10)  # its polynomials and roundings


SITE_LIMIT = 2**24


def hashed_id(name: str) -> int:
    """24 bits of BLAKE2b of a site's name."""
    digest = hashlib.blake2b(name.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % SITE_LIMIT


def hashed_number(name: str) -> int:
    """64 bits of BLAKE2b of a name, as a signed number."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)


# As torch.compiler.assume_constant_result does it, which would import the whole compiler.
hashed_id._dynamo_marked_constant = True  # type: ignore[attr-defined]


OWN_STREAMS = 128  # `kFirstOwnOperand` of noise.h: from here to 255, streams that are not listed


def stream_number(name: str) -> int:
    """The number of a stream: its place among `OPERANDS`; of a name of one's own, the lower seven bits of its BLAKE2b,
    counted from 128. Two names may have one number, which is refused for devices of one list.

    Example:
        >>> stream_number("weight"), stream_number("stuck cells")
        (3, 228)
    """
    if name in OPERANDS:
        return OPERANDS.index(name)
    return OWN_STREAMS + hashlib.blake2b(name.encode(), digest_size=1).digest()[0] % OWN_STREAMS


# As for `hashed_id`.
stream_number._dynamo_marked_constant = True  # type: ignore[attr-defined]


def site_ids(names: Iterable[str]) -> dict[str, int]:
    """Numbers of a model's sites: the hashed name; of two equal ones the later name moves up.

    Example:
        >>> site_ids(["input", "conv1:conv2d#0"])
        {'conv1:conv2d#0': 4577211, 'input': 11703183}
    """
    ids: dict[str, int] = {}
    taken: set[int] = set()
    for name in sorted(names):
        number = hashed_id(name)
        while number in taken:
            number = (number + 1) % SITE_LIMIT
        taken.add(number)
        ids[name] = number
    return ids
