"""Answers kept in a file: what is there is not evaluated again, and several processes share the rest.

A task is what one request still lacks on some hundred rows: levels by draws of one site. It is evaluated and kept as a
whole, so that a study that was killed asks again for exactly the same, and ends with the same bits. Where rows are cut
depends on the engine's chunks only, so that a larger study finds what a smaller one has left.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from noisykernels._engine.judging import entries
from noisykernels._engine.request import Advance, Answer, Evaluate, Request, joined, unheard
from noisykernels._engine.store import Store, StoreError
from noisykernels._engine.store_keys import task_key, task_of
from noisykernels.metrics.law import Law

__all__ = ["CachedAnswers"]


LEASE = 15.0  # seconds that others keep off a task without a sign of life
BEAT, POLL = 3.0, 0.2  # seconds between signs of life, and between looks at what others do
GO = 5.0  # seconds of tasks evaluated in one go: they share the clean prefix and the workers, and are lost together
FIRST_GO = 20_000  # predictions of the first one, which tells how fast they are


class Engines(Protocol):
    """What is known of who evaluates a request; it may change while one is evaluated."""

    def rows_of_task(self, request: Request) -> int:
        """Rows of a task of a request, a multiple of its engine's chunks."""

    def engine_of(self, request: Request) -> str:
        """By what answers of one engine are told from those of another."""


class CachedAnswers:
    """Evaluates requests through a store.

    Args:
        store: the file.
        evaluate: gives the answers that the file does not hold.
        engines: tell how tasks are cut, and by which engine they are evaluated.
        law: by which answers are packed.
        rows: of the study's data.
    """

    def __init__(self, store: Store, evaluate: Evaluate, engines: Engines, law: Law, rows: int) -> None:
        self.store, self.evaluate, self.engines, self.law, self.rows = store, evaluate, engines, law, rows
        self.together = FIRST_GO  # predictions of one go
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.cells: dict[tuple[str, str, str, int], Any] = {}  # (site, rows, bits of level, draw): answer of the rows
        self.read: set[str] = set()

    def answers(self, requests: Sequence[Request], advance: Advance = unheard) -> list[Answer]:
        """The answers to requests, from the file or evaluated now; waits for those that others are at."""
        told = 0.0
        try:
            while True:
                self._look()
                parts = [list(self._parts(r)) for r in requests]
                rest = [lack for some in parts for part in some for lack in self._rest(part)]
                open_cells = sum(r.cells / (len(w.draws) * w.rows)
                                 for w, some in zip(requests, parts, strict=True)
                                 for part in some for r in self._rest(part))  # fmt: skip
                done = sum(len(r.levels) for r in requests) - open_cells
                advance(done - told)
                told = done
                if not rest:
                    return [joined(self.law, r, [(p, self._assembled(p)) for p in some])
                            for r, some in zip(requests, parts, strict=True)]  # fmt: skip
                if not any(self._worked(group) for group in self._groups(rest)):
                    time.sleep(POLL)
        finally:
            with contextlib.suppress(StoreError):  # what is wrong with the file was said; a lease runs out by itself
                self.store.release(self.owner)

    def _worked(self, group: Sequence[Request]) -> bool:
        """Evaluates what nobody else is at of a group; whether there was anything."""
        keys = [self._key(r) for r in group]
        taken = set(self.store.claim(keys, self.owner, LEASE, len(keys)))
        mine = [r for r, key in zip(group, keys, strict=True) if key in taken]
        if mine:
            start = time.monotonic()
            with self._alive():
                answers = self.evaluate.answers(mine)
            predictions = sum(r.cells for r in mine)
            self.together = max(FIRST_GO, int(predictions * GO / max(1e-3, time.monotonic() - start)))
            found = {self._key(r): self.law.packed(answer) for r, answer in zip(mine, answers, strict=True)}
            # Where another engine has taken over meanwhile, tasks are cut otherwise.
            self.store.finish({key: answer for key, answer in found.items() if key in taken}, self.owner)
        return bool(mine)

    def _parts(self, request: Request) -> Iterator[Request]:
        """A request cut by rows into what makes one task each."""
        step = self.engines.rows_of_task(request)
        for first in range(request.start // step * step, request.end, step):
            if (part := request.within(first, first + step)) is not None:
                yield part

    def _groups(self, requests: Sequence[Request]) -> Iterator[list[Request]]:
        """Requests in their order, so many together as one go takes."""
        group: list[Request] = []
        size = 0
        for r in requests:
            group.append(r)
            size += r.cells
            if size >= self.together:
                yield group
                group, size = [], 0
        if group:
            yield group

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        """Signs of life from a thread: a single pass of a large model may take longer than a lease."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(BEAT):
                with contextlib.suppress(StoreError):  # the results will not go in either, and that will be said
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
        for key, result in self.store.done(self.read).items():
            try:
                site, levels, draws, (first, end) = task_of(key)
                if end > self.rows:
                    raise ValueError(f"expected {self.rows} rows, got rows to {end}")
                answer = self.law.unpacked(result, (len(levels), len(draws), entries(self.law, first, end)))
            except (KeyError, TypeError, ValueError) as error:
                raise self.store.damage(key, error) from error
            self.read.add(key)
            rows = f"{first}:{end}"
            for level, of_level in zip(levels, answer, strict=True):
                for draw, of_draw in zip(draws, of_level, strict=True):
                    self.cells[site, rows, level.hex(), draw] = of_draw

    def _rest(self, request: Request) -> list[Request]:
        """What the file lacks of a request, as requests for whole rectangles."""
        lacking: dict[tuple[int, ...], list[float]] = {}
        for level in request.levels:
            draws = tuple(d for d in request.draws if self._cell(request, level, d) is None)
            if draws:
                lacking.setdefault(draws, []).append(level)
        return [replace(request, levels=tuple(levels), draws=draws) for draws, levels in lacking.items()]

    def _cell(self, request: Request, level: float, draw: int) -> Any:
        return self.cells.get((self._site(request), f"{request.start}:{request.end}", float(level).hex(), draw))

    def _assembled(self, request: Request) -> Answer:
        return np.stack([np.stack([self._cell(request, v, d) for d in request.draws]) for v in request.levels])

    def _site(self, request: Request) -> str:
        """The site, which of several noises it is, and the engine."""
        which = str(request.which) if request.which else ""
        return "~".join(filter(None, (request.site.name, which, self.engines.engine_of(request))))

    def _key(self, request: Request) -> str:
        return task_key(self._site(request), request.levels, request.draws, (request.start, request.end))
