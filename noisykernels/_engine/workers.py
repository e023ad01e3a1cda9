"""Sends parts of requests to the workers of an executor, and puts their answers together.

Anything with the semantics of `concurrent.futures` will do: `submit` gives a future. A worker that dies gives an error
there, and the part is sent again. Requests are cut by rows at the borders of chunks, so answers depend neither on the
number of workers nor on who evaluates what. That is checked: something of each worker's first part is repeated here.
An executor takes no orders as to who gets a part, so one that answers otherwise goes on getting parts; each of them is
evaluated here again, which takes time but leaves nothing wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import pickle
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from noisykernels._C import STREAM_VERSION, cpu_level
from noisykernels._engine.evaluator import Evaluator
from noisykernels._engine.plan import Passes, Plan
from noisykernels._engine.request import Advance, Answer, Request, joined, unheard, unlike
from noisykernels._engine.session import Problem, Session
from noisykernels._util.inputs import Inputs
from noisykernels._util.runtime import torch_threads
from noisykernels._util.warning import warn_user

__all__ = ["RayExecutor", "Workers", "packed"]


PREDICTIONS = 250_000  # of a part: some tenths of a second for a small network
PARTS = 8  # of a round at least, where it has so many chunks
TRIES = 3  # of a part whose worker died
KEPT = 2  # problems that a worker thread remembers

_here = threading.local()


class RayExecutor(Executor):
    """`submit` for Ray: tasks of the cluster that `ray.init` joined. Ray tries a task again when its worker dies.

    Example:
        >>> executor = RayExecutor()  # doctest: +SKIP
        >>> walk(model, data, noise=Noise(add=1.0), seed=0, compute=Compute(executor=executor))  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._remote: dict[Any, Any] = {}

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future of `fn(*args, **kwargs)`."""
        import ray  # as large as torch; only who has it comes here

        if fn not in self._remote:
            self._remote[fn] = ray.remote(fn)
        found: Future[Any] = self._remote[fn].remote(*args, **kwargs).future()
        return found


def packed(problem: Problem) -> bytes:
    """A problem as bytes; models of a notebook or a script too where cloudpickle is installed."""
    try:
        import cloudpickle as how
    except ModuleNotFoundError:
        how = pickle
    inputs, labels, rows = problem.data
    inputs = inputs.each(_alone) if isinstance(inputs, Inputs) else inputs
    labels = _alone(labels) if isinstance(labels, torch.Tensor) else labels
    try:
        found: bytes = how.dumps(replace(problem, data=(inputs, labels, _alone(rows))))
        return found
    except (pickle.PicklingError, TypeError, AttributeError, RuntimeError) as error:
        what = "model" if isinstance(inputs, Inputs) else "model or its data"
        raise ValueError(f"{problem.call.op}: the {what} cannot be sent to workers: {error}") from error


def _alone(t: torch.Tensor) -> torch.Tensor:
    """A tensor is sent with all of its memory, be it a small part of a large one."""
    return t.clone() if t.untyped_storage().nbytes() > t.nbytes else t


# ------------------------------------------------------------------------------------------ a worker


@dataclass(frozen=True)
class Part:
    """What a worker is sent, beside the problem itself, which goes along if it does not know it."""

    op: str  # the function that was called, for errors
    key: str  # of the problem
    passes: Passes
    plan: Plan | None
    threads: int
    versions: tuple[str, int, str]  # of torch and of the noise stream, and the CPU level
    differing: tuple[dict[str, str], ...]  # of each target, the sites that run whole
    requests: tuple[Request, ...]


class Given(NamedTuple):
    """What a worker answers."""

    worker: str
    answers: list[Answer]


def evaluate_part(part: Part, problem: bytes | None) -> Given | Exception | None:
    """In the worker: the answers; an error of the model or the versions; None: it does not know the problem yet."""
    try:
        if part.versions != (mine := _versions()):
            raise RuntimeError(
                f"{part.op}: a worker has torch, noise stream and CPU level {mine}, expected {part.versions}; "
                "NOISYKERNELS_CPU_LEVEL sets the level"
            )
        known = _here.__dict__.setdefault("known", {})
        if part.key not in known:
            if problem is None:
                return None
            with torch.inference_mode(False):  # it may have been inherited
                session = Session(part.op, pickle.loads(problem), passes=part.passes, own=True)
                session.__enter__()  # for as long as the worker remembers it
            while len(known) >= KEPT:
                known.pop(next(iter(known))).session.__exit__(None, None, None)
            known[part.key] = Evaluator(session, part.plan)
        here: Evaluator = known[part.key]
        for verification, differing in zip(here.verifications, part.differing, strict=True):
            verification.differing = differing
        with torch_threads(part.threads):
            return Given(_me(), here.answers(part.requests))
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # it would break the pool on its way back
            return RuntimeError(f"{type(error).__name__}: {error}")
        return error


def _me() -> str:
    """This worker, as a person can find it."""
    return f"{socket.gethostname()}, process {os.getpid()}, thread {threading.get_native_id()}"


def _versions() -> tuple[str, int, str]:
    return torch.__version__, STREAM_VERSION, cpu_level()


# ----------------------------------------------------------------------------------- the coordinator


def _begun() -> None:
    """First in a worker: Ctrl-C is the coordinator's to handle, and a worker ends with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_ends_alone, daemon=True).start()


def _ends_alone() -> None:
    """Waits for a pipe to break whose other end the coordinator alone holds: it may be killed without a word."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def _spared() -> Iterator[None]:
    """Processes started within are spared Ctrl-C from their first instruction on; it comes to this one afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Workers:
    """An executor that evaluates the parts of requests; a context manager.

    Args:
        executor: an object with `submit`, or the number of processes to start; those are replaced when they die.
        problem: what `packed` gave.
        here: evaluates what an executor that broke for good has left; the workers cut their work as it does.
    """

    def __init__(self, executor: Executor | int, problem: bytes, here: Evaluator) -> None:
        self.count = executor if isinstance(executor, int) else 0
        self.executor = self._pool() if isinstance(executor, int) else executor
        self.problem, self.here = problem, here
        key, passes = hashlib.sha256(problem).hexdigest(), here.session.passes
        self.op = here.session.op
        self.part = Part(self.op, key, passes, here.plan, torch.get_num_threads(), _versions(), (), ())
        self.trusted: dict[str, bool] = {}  # each worker
        self.workers = self.count or getattr(executor, "_max_workers", None) or os.cpu_count() or 4

    def _pool(self) -> Executor:
        return ProcessPoolExecutor(self.count, multiprocessing.get_context("spawn"), initializer=_begun)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.count:
            processes = list(getattr(self.executor, "_processes", None) or {})
            self.executor.shutdown(wait=exception[0] is None, cancel_futures=True)
            if exception[0] is not None:  # what they are at is of no use any more
                for pid in processes:
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGTERM)

    def answers(self, requests: Sequence[Request], advance: Advance = unheard) -> list[Answer]:
        """As `Evaluator.answers`."""
        parts = list(self._cut(requests))
        part = replace(self.part, differing=tuple(dict(v.differing) for v in self.here.verifications))
        answers: dict[int, list[Answer]] = {}
        waiting = deque(range(len(parts)))
        unknown: set[int] = set()  # parts whose worker did not know the problem
        tries = [0] * len(parts)
        running: dict[Future[Any], int] = {}
        carrying: set[Future[Any]] = set()  # with the problem: one for each worker at most, for it may be large

        def told(i: int) -> None:
            for k, r in parts[i]:
                advance(len(r.levels) * r.rows / requests[k].rows)

        try:
            while waiting or running:
                # Two for each worker, so that none waits.
                while waiting and len(running) < 2 * self.workers:
                    i = waiting[0]
                    if i in unknown and len(carrying) >= self.workers:
                        break
                    message = replace(part, requests=tuple(r for _, r in parts[i]))
                    try:
                        with _spared() if self.count else contextlib.nullcontext():  # the first ones start processes
                            future = self.executor.submit(
                                evaluate_part, message, self.problem if i in unknown else None
                            )
                    except BrokenExecutor as error:
                        if not self._renewed(error):
                            for k in (*waiting, *running.values()):
                                answers[k] = self.here.answers([r for _, r in parts[k]])
                                told(k)
                            waiting.clear()
                            running.clear()
                        break
                    waiting.popleft()
                    running[future] = i
                    if i in unknown:
                        carrying.add(future)
                for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                    i = running.pop(future)
                    given = self._result(future, i, tries)
                    if given is None:
                        waiting.appendleft(i)
                        unknown.add(i)
                    else:
                        asked = [r for _, r in parts[i]]
                        answers[i] = given.answers if self._trusts(given, asked) else self.here.answers(asked)
                        told(i)
                        if future in carrying:  # its worker knows the problem now
                            unknown.clear()
                    carrying.discard(future)
        finally:
            for future in () if self.count else running:  # a pool that ends stumbles over what others have cancelled
                future.cancel()
        found: dict[int, list[tuple[Request, Answer]]] = {k: [] for k in range(len(requests))}
        for i, pairs in enumerate(parts):
            for (k, request), one in zip(pairs, answers[i], strict=True):
                found[k].append((request, one))
        law = self.here.problem.metric.law
        return [joined(law, request, found[k]) for k, request in enumerate(requests)]

    def _trusts(self, given: Given, asked: Sequence[Request]) -> bool:
        """Whether a worker's answers are this process's own: of its first part one request, another one of each worker,
        is repeated on a chunk of rows, and must be equal to the bit."""
        worker, answers = given
        if worker not in self.trusted:
            place = len(self.trusted) % len(asked)
            request = asked[place]
            rows = self.here.engines([request])[0][0].rows
            law = self.here.problem.metric.law
            end = (request.start // rows + 1) * rows
            part = request.within(request.start, end if law.block == 1 else request.end)  # sums have no parts
            assert part is not None
            (mine,) = self.here.answers([part])
            self.trusted[worker] = not unlike(mine, answers[place][:, :, : part.entries(law)]).any()
            if not self.trusted[worker]:
                warn_user(
                    f"{self.op}: a worker ({worker}) answers otherwise than this process for the same task, at site "
                    f"{request.site.name}; what it answers is not used",
                )
        return self.trusted[worker]

    def _result(self, future: Future[Any], i: int, tries: list[int]) -> Given | None:
        """What came back; None: it is to be sent again."""
        try:
            answer = future.result()
        except Exception as error:
            tries[i] += 1
            if tries[i] >= TRIES:
                hint = "; a script that starts processes needs `if __name__ == '__main__':`" if self.count else ""
                raise RuntimeError(
                    f"{self.op}: workers died {TRIES} times over one part ({type(error).__name__}: {error}){hint}"
                ) from error
            return None
        if isinstance(answer, Exception):
            raise answer
        found: Given | None = answer
        return found

    def _renewed(self, error: Exception) -> bool:
        """Whether there are new workers in place of an executor that broke."""
        if self.count:
            self.executor.shutdown(wait=False, cancel_futures=True)
            self.executor = self._pool()
            return True
        warn_user(f"{self.op}: the executor broke ({error}); what is left runs in this process")
        return False

    def _cut(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, Request]]]:
        """Requests in parts of some chunks of rows: lists of (place in `requests`, part of it)."""
        for engine, places in self.here.engines(requests):
            mine = [(k, requests[k]) for k in places]
            low, high = min(r.start for _, r in mine), max(r.end for _, r in mine)
            chunks = -(-high // engine.rows) - low // engine.rows
            predictions = sum(r.cells for _, r in mine)
            step = engine.rows * max(1, chunks // max(PARTS, predictions // PREDICTIONS))
            for first in range(low // engine.rows * engine.rows, high, step):
                part = [(k, p) for k, r in mine if (p := r.within(first, first + step)) is not None]
                if part:
                    yield part
