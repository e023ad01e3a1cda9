"""Answers kept in a file: what is there is not evaluated again, and several processes share the rest.

A task is what one request still lacks: levels by draws of one site on the first rows. It is evaluated and kept as a
whole, so that a study that was killed asks again for exactly the same, and ends with the same bits.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from noisykernels.adaptive import NAN, Answer, Request
from noisykernels.store import Store, task_key

__all__ = ["Kept"]

Evaluate = Callable[[Sequence[Request], Callable[[float], object]], Sequence[Answer]]

LEASE = 15.0  # seconds that others keep off a task without a sign of life
BEAT, POLL = 3.0, 0.2  # seconds between signs of life, and between looks at what others do
TOGETHER = 5_000_000  # predictions of the tasks evaluated in one go: they share the clean prefix, and are lost together


class Kept:
    """Evaluates requests through a store.

    Args:
        store: the file.
        evaluate: gives the answers that the file does not hold.
    """

    def __init__(self, store: Store, evaluate: Evaluate) -> None:
        self.store, self.evaluate = store, evaluate
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.cells: dict[tuple[str, str, str, int], Any] = {}  # (site, rows, bits of level, draw): answer of the rows
        self.read: set[str] = set()

    def answers(self, requests: Sequence[Request], advance: Callable[[float], object]) -> list[Answer]:
        """The answers to requests, from the file or evaluated now; waits for those that others are at."""
        told = 0.0

        def forward(requests: Sequence[Request]) -> None:
            nonlocal told
            whole = sum(len(r.levels) for r in requests)
            lacking = sum(len(part.levels) * len(part.draws) / len(r.draws) for r in requests for part in self._rest(r))
            advance(whole - lacking - told)
            told = whole - lacking

        try:
            while True:
                self._look()
                forward(requests)
                rest = [part for r in requests for part in self._rest(r)]
                if not rest:
                    return [self._assembled(r) for r in requests]
                if not any(self._worked(group) for group in _groups(rest)):
                    time.sleep(POLL)
        finally:
            self.store.release(self.owner)

    def _worked(self, group: Sequence[Request]) -> bool:
        """Evaluates what nobody else is at of a group; whether there was anything."""
        mine = [r for r in group if self.store.claim([_key(r)], self.owner, LEASE, 1)]
        if mine:
            with self._alive():
                answers = self.evaluate(mine, lambda _: None)
            for request, answer in zip(mine, answers, strict=True):
                self.store.finish(_key(request), _encoded(answer), self.owner)
        return bool(mine)

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        """Signs of life from a thread: a single pass of a large model may take longer than a lease."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(BEAT):
                self.store.heartbeat(self.owner)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _look(self) -> None:
        """Takes in what has been finished since."""
        for key, result in self.store.done().items():
            if key in self.read:
                continue
            self.read.add(key)
            site, levels, draws, rows = key.rsplit("|", 3)
            for level, of_level in zip(levels.split(";"), _decoded(result), strict=True):
                for draw, of_draw in zip(draws.split(","), of_level, strict=True):
                    self.cells[site, rows, level, int(draw)] = of_draw

    def _rest(self, request: Request) -> list[Request]:
        """What the file lacks of a request, as requests for whole rectangles."""
        lacking: dict[tuple[int, ...], list[float]] = {}
        for level in request.levels:
            draws = tuple(d for d in request.draws if self._cell(request, level, d) is None)
            if draws:
                lacking.setdefault(draws, []).append(level)
        return [replace(request, levels=tuple(levels), draws=draws) for draws, levels in lacking.items()]

    def _cell(self, request: Request, level: float, draw: int) -> Any:
        return self.cells.get((_site(request), f"{request.start}:{request.end}", float(level).hex(), draw))

    def _assembled(self, request: Request) -> Answer:
        return np.stack([np.stack([self._cell(request, v, d) for d in request.draws]) for v in request.levels])


def _site(request: Request) -> str:
    """The site, and which of several noises it is."""
    return f"{request.site.name}~{request.which}" if request.which else request.site.name


def _key(request: Request) -> str:
    return task_key(_site(request), request.levels, request.draws, (request.start, request.end))


def _groups(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Requests in their order, so many together as make up `TOGETHER` predictions."""
    group: list[Request] = []
    size = 0
    for r in requests:
        group.append(r)
        size += len(r.levels) * len(r.draws) * r.rows
        if size >= TOGETHER:
            yield group
            group, size = [], 0
    if group:
        yield group


def _encoded(answer: Answer) -> dict[str, Any]:
    def packed(which: Any) -> str:
        return base64.b64encode(zlib.compress(np.packbits(which).tobytes(), 1)).decode()

    return {"shape": list(answer.shape), "correct": packed(answer == 1), "nan": packed(answer == NAN)}


def _decoded(result: dict[str, Any]) -> Answer:
    def unpacked(text: str) -> Any:
        bits = np.unpackbits(np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8))
        return bits[: int(np.prod(result["shape"]))].reshape(result["shape"]).astype(np.int8)

    answer: Answer = unpacked(result["correct"]) + NAN * unpacked(result["nan"])
    return answer
