"""Studies on workers: the same whatever they are and how many, also when one dies."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels._engine import workers
from noisykernels._engine.plan import Passes
from noisykernels.zoo import MLP

GRID: dict[str, Any] = dict(noise=nk.Noise(add=1.0), levels=[0.1, 1.0, 3.0], draws=3, seed=1)


class Half(nn.Module):
    """One layer that can be reached alone, one whose rows look at each other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(torch.relu(x - x.mean(0)))


def problem(rows: int = 700) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model, x = MLP(12, 4, width=8, norm=True).eval(), torch.randn(rows, 12)
    return model, (x, model(x).argmax(1))


@contextmanager
def dask() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        with distributed.Client(cluster) as client, client.get_executor(pure=False) as executor:
            yield executor


@contextmanager
def ray() -> Iterator[Any]:
    module = pytest.importorskip("ray")
    here = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}  # its workers need these classes
    module.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": here})
    try:
        yield workers.RayExecutor()
    finally:
        module.shutdown()


@contextmanager
def loky() -> Iterator[Any]:
    with pytest.importorskip("loky").get_reusable_executor(2) as executor:
        yield executor


@contextmanager
def processes() -> Iterator[Any]:
    yield 2


ENGINES = {
    "threads": lambda: ThreadPoolExecutor(2), "processes": processes, "loky": loky, "dask": dask, "ray": ray,
}  # fmt: skip


SLOW = [pytest.param(name, marks=pytest.mark.full) for name in ("loky", "dask", "ray")]  # to start


@pytest.mark.parametrize("name", ["threads", "processes", *SLOW])
def test_every_engine_gives_the_same(name: str) -> None:
    """A grid and a search with two workers, on the sites that share work and on those that do not."""
    model, data = problem()
    with warnings.catch_warnings(), ENGINES[name]() as executor:
        warnings.simplefilter("ignore")
        for how in (GRID, dict(noise=nk.Noise(add=1.0), seed=1)):
            alone, together = (
                nk.walk(model, data, **how, compute=nk.Compute(executor=e, threads=1)) for e in (None, executor)
            )
            assert together.records == alone.records and together.meta == alone.meta
        torch.manual_seed(0)
        half = Half().eval()
        alone, together = (
            nk.walk(half, data, **GRID, compute=nk.Compute(executor=e, threads=1, batch_rows=50))
            for e in (None, executor)
        )  # fmt: skip
        assert together.records == alone.records


@pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="mpi4py is not installed")
@pytest.mark.full
def test_mpi_gives_the_same(tmp_path: Path) -> None:
    """Two workers that MPI starts; in a process of its own, because MPI stays with a process until its end."""
    script = tmp_path / "study.py"
    script.write_text(
        "import sys, torch\n"
        f"sys.path[:0] = {sys.path!r}\n"
        "import noisykernels as nk\n"
        "from mpi4py.futures import MPIPoolExecutor\n"
        "from test_workers import GRID, problem\n"
        "if __name__ == '__main__':\n"
        "    model, data = problem()\n"
        "    with MPIPoolExecutor(2) as executor:\n"
        "        together = nk.walk(model, data, **GRID, compute=nk.Compute(executor=executor, threads=1))\n"
        "    assert together.records == nk.walk(model, data, **GRID, compute=nk.Compute(threads=1)).records\n"
        "    print('equal')\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=200, env={**os.environ, "PYTHONPATH": path}
    )
    if "MPI_ERR_SPAWN" in done.stderr:
        pytest.skip(f"this MPI cannot start processes: {done.stderr[-300:]}")
    assert done.stdout.strip() == "equal", done.stderr


class Reluctant(Executor):
    """Runs at once; every fifth task is lost as if its worker had died, and the problem is forgotten meanwhile."""

    every = 5

    def __init__(self) -> None:
        self.count = self.carried = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.count, self.carried = self.count + 1, self.carried + (args[1] is not None)
        future: Future[Any] = Future()
        if self.count % self.every == 0:
            workers._here.__dict__.clear()
            future.set_exception(OSError("the worker died"))
        else:
            future.set_result(fn(*args, **kwargs))
        return future


def test_a_worker_that_dies_is_replaced_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PREDICTIONS", 1000)
    model, data = problem()
    executor = Reluctant()
    alone, together = (
        nk.walk(model, data, **GRID, compute=nk.Compute(executor=e, batch_rows=50)) for e in (None, executor)
    )
    assert together.records == alone.records
    assert executor.count > 8 and executor.carried >= 2


def test_processes_that_are_killed_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 of a worker in the midst of a study."""
    monkeypatch.setattr(workers, "PREDICTIONS", 1000)
    model, data = problem(3000)
    killed: list[int] = []
    pool = workers.Workers._pool

    def watched(self: workers.Workers) -> Executor:
        made = pool(self)

        def kill() -> None:
            time.sleep(4)
            for pid in [*(getattr(made, "_processes", None) or {})][:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

        if not killed:
            threading.Thread(target=kill, daemon=True).start()
        return made

    monkeypatch.setattr(workers.Workers, "_pool", watched)
    how: dict[str, Any] = dict(GRID, levels=torch.logspace(-2, 2, 60).tolist(), draws=20)
    together = nk.walk(model, data, **how, compute=nk.Compute(threads=1, executor=1))
    assert killed
    assert together.records == nk.walk(model, data, **how, compute=nk.Compute(threads=1)).records


COORDINATOR = """
import signal
import torch
import noisykernels as nk
from noisykernels.zoo import MLP

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell inherits that it is ignored
    torch.manual_seed(0)
    model, x = MLP(12, 4, width=8, norm=True).eval(), torch.randn(60000, 12)
    try:
        nk.walk(model, (x, torch.arange(len(x)) % 4), noise=nk.Noise(add=1.0), seed=1, draws=10,
                levels=torch.logspace(-2, 2, 100).tolist(), compute=nk.Compute(threads=1, executor=2),
                progress=lambda done, total: print(done, flush=True))
    except KeyboardInterrupt:
        print("stopped")
"""


def workers_of(pid: int) -> list[int]:
    """The processes that a process has started."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(word) for word in listed.split()]


def runs(pid: int) -> bool:
    """Whether a process runs still; an ended one whose new parent does not care stays in the table."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def assert_they_end(pids: list[int]) -> None:
    """They look whether their coordinator is there: on a busy machine it takes them seconds to come so far."""
    end = time.monotonic() + 30
    while any(map(runs, pids)):
        assert time.monotonic() < end, [pid for pid in pids if runs(pid)]
        time.sleep(0.1)


@contextmanager
def coordinator(folder: Path, started: bool) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A study with two workers, which are at work, or have only just been started; none is left afterwards."""
    script = folder / "study.py"
    script.write_text(COORDINATOR)
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )
    pids: list[int] = []
    try:
        while len(pids) < 3:  # two workers, and who counts what they share
            assert process.poll() is None
            pids = workers_of(process.pid)
            time.sleep(0.02)
        assert process.stdout is not None
        while not started and process.stdout.readline() in ("", "0\n"):
            assert process.poll() is None
        yield process, pids
    finally:
        for pid in (process.pid, *pids):
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps")
@pytest.mark.parametrize("how, started", [(signal.SIGKILL, False), (signal.SIGTERM, True)])
def test_workers_end_with_their_coordinator(tmp_path: Path, how: signal.Signals, started: bool) -> None:
    with coordinator(tmp_path, started) as (process, pids):
        process.send_signal(how)
        process.wait()
        assert_they_end(pids)


@pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps")
def test_workers_do_not_hear_of_ctrl_c(tmp_path: Path) -> None:
    """Neither while they start: a terminal sends it to all, and each would print a traceback."""
    with coordinator(tmp_path, started=True) as (process, pids):
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert out.endswith("stopped\n") and err == ""
        assert_they_end(pids)  # who counts what they share sees it only once the coordinator is gone


class Breaking(Executor):
    """Takes two tasks, then none."""

    def __init__(self) -> None:
        self.left = 2

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        if not self.left:
            raise BrokenExecutor("all gone")
        self.left -= 1
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def test_what_a_broken_executor_leaves_runs_here() -> None:
    model, data = problem()
    seen: list[int] = []
    with pytest.warns(UserWarning, match=r"the executor broke \(all gone\); what is left runs in this process"):
        together = nk.walk(
            model, data, **GRID, progress=lambda done, total: seen.append(done), compute=nk.Compute(executor=Breaking())
        )
    assert seen[-1] == 3 * len(together.meta.sites)
    assert together.records == nk.walk(model, data, **GRID).records


class Failing(nn.Module):
    """Fails in workers only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.home = nn.Linear(12, 4), os.getpid()

    def forward(self, x: Tensor) -> Tensor:
        if os.getpid() != self.home:
            raise ArithmeticError("not at home")
        return self.a(x)


def test_errors_in_workers_are_told() -> None:
    _, data = problem()
    with pytest.raises(ArithmeticError, match="not at home"):
        nk.walk(Failing(), data, **GRID, compute=nk.Compute(executor=1))


class Awkward(Exception):
    """Cannot be pickled."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")
        self.lock = threading.Lock()


def test_errors_that_cannot_travel_are_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise Awkward(1, 2)

    monkeypatch.setattr(workers.Evaluator, "answers", fail)
    model, data = problem()
    with ThreadPoolExecutor(1) as executor, pytest.raises(RuntimeError, match="Awkward: 1 and 2"):
        nk.walk(model, data, **GRID, compute=nk.Compute(executor=executor))


def test_only_the_rows_of_the_study_are_sent_and_not_more_often_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PREDICTIONS", 1000)
    model, (x, y) = problem(7000)
    made = workers.packed
    sizes: list[int] = []
    monkeypatch.setattr("noisykernels.walking.walks.packed", lambda p: (found := made(p), sizes.append(len(found)))[0])
    executor = Reluctant()
    monkeypatch.setattr(executor, "_max_workers", 1, raising=False)
    monkeypatch.setattr(Reluctant, "every", 10**9)
    seen: list[int] = []
    nk.walk(
        model,
        (x[:200], y[:200]),
        **GRID,
        progress=lambda n, _: seen.append(n),
        compute=nk.Compute(executor=executor, batch_rows=10),
    )
    assert sizes[0] < 100_000 < x.nbytes
    assert executor.carried == 1 and seen == sorted(seen) and seen[-1] == 3 * len(nk.sites(model, x[:2]))


class Dying(Executor):
    """Every worker dies."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(OSError("out of memory"))
        return future


def test_parts_that_kill_every_worker_end_the_study() -> None:
    model, data = problem()
    with pytest.raises(RuntimeError, match=r"workers died 3 times over one part \(OSError: out of memory\)"):
        nk.walk(model, data, **GRID, compute=nk.Compute(executor=Dying()))


def test_other_versions_are_refused() -> None:
    part = workers.Part("walk", "k", Passes(1, 1), None, 1, ("0.0", 1, "avx2"), (), ())
    answer = workers.evaluate_part(part, None)
    assert isinstance(answer, RuntimeError) and "a worker has torch, noise stream and CPU level" in str(answer)


class Unsendable(nn.Linear):
    """Holds a lock."""

    def __init__(self) -> None:
        super().__init__(12, 4)
        self.lock = threading.Lock()


def test_bad_executors_are_refused() -> None:
    model, data = problem()
    with pytest.raises(ValueError, match="executor must be a whole number from 1 to 1024, got 0"):
        nk.walk(model, data, **GRID, compute=nk.Compute(executor=0))
    with pytest.raises(TypeError, match="executor must have `submit`, or be a number of processes, got 'dask'"):
        nk.walk(model, data, **GRID, compute=nk.Compute(executor="dask"))
    with pytest.raises(ValueError, match="the model cannot be sent to workers"):
        nk.walk(Unsendable(), data, **GRID, compute=nk.Compute(executor=1))


def test_a_store_and_workers_go_together(tmp_path: Path) -> None:
    model, data = problem()
    with ThreadPoolExecutor(2) as executor:
        first = nk.walk(model, data, **GRID, store=tmp_path / "s.db", compute=nk.Compute(executor=executor))
    assert first.records == nk.walk(model, data, **GRID, store=tmp_path / "s.db").records


def test_a_pool_of_the_caller_stays_open() -> None:
    model, data = problem()
    with ProcessPoolExecutor(1) as executor:  # forked or spawned: as the caller has it
        nk.walk(model, data, **GRID, compute=nk.Compute(executor=executor, threads=1))
        assert executor.submit(int, "3").result() == 3
