"""Who trains: this process, or several worker processes, each with one training at a time."""

import multiprocessing
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import JsonValue

from nfopt.errors import NfoptError, RecipeError
from nfopt.progress import Progress, ProgressCallback
from nfopt.recipe.trial import Trial


@dataclass(frozen=True)
class Finished:
    """A training that is over: its curve as JSON values and the seconds that it took."""

    trial: Trial
    curve: JsonValue
    seconds: float


class Crew(Protocol):
    """Those who train."""

    @property
    def free(self) -> int:
        """How many trainings could be begun now."""
        ...

    def begin(self, trial: Trial, state_file: Path) -> None:
        """Begin a training; only while `free` is positive."""
        ...

    def finished(self) -> Finished:
        """Wait for a training to end, and return it; only while one is under way."""
        ...


class OneProcess:
    """Trains here, one after the other."""

    def __init__(self, progress: ProgressCallback) -> None:
        self._progress = progress
        self._begun: tuple[Trial, Path] | None = None

    @property
    def free(self) -> int:
        """1 unless a training waits to be run."""
        return 1 if self._begun is None else 0

    def begin(self, trial: Trial, state_file: Path) -> None:
        """Remember the training; `finished` runs it."""
        self._begun = (trial, state_file)

    def finished(self) -> Finished:
        """Run the training."""
        assert self._begun is not None
        (trial, state_file), self._begun = self._begun, None
        start = time.monotonic()
        return Finished(trial, trial.run(state_file, self._progress), time.monotonic() - start)


@dataclass
class _Worker:
    process: Any
    connection: Connection
    trial: Trial | None = None
    begun: float = 0.0


class WorkerProcesses:
    """Trains in `processes` spawned processes of `threads` threads each."""

    def __init__(self, processes: int, threads: int, progress: ProgressCallback) -> None:
        self._progress = progress
        context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        for number in range(processes):
            here, there = context.Pipe()
            process = context.Process(
                target=_work, args=(there, threads), name=f"nfopt-race-{number}", daemon=True
            )
            process.start()
            there.close()
            self._workers.append(_Worker(process, here))

    @property
    def free(self) -> int:
        """Number of workers without a training."""
        return sum(worker.trial is None for worker in self._workers)

    def begin(self, trial: Trial, state_file: Path) -> None:
        """Hand the training to a free worker."""
        worker = next(worker for worker in self._workers if worker.trial is None)
        worker.trial, worker.begun = trial, time.monotonic()
        try:
            worker.connection.send((trial, state_file))
        except BrokenPipeError:
            raise _gone(worker) from None

    def finished(self) -> Finished:
        """Return the next training that ends, passing on progress meanwhile.

        Raises:
            RecipeError: a worker died.
            NfoptError: a worker met bad input.
        """
        while True:
            busy = {worker.connection: worker for worker in self._workers if worker.trial is not None}
            for connection in wait(list(busy)):
                worker = busy[connection]  # pyright: ignore[reportArgumentType]
                try:
                    message = worker.connection.recv()
                except (EOFError, ConnectionResetError):
                    raise _gone(worker) from None
                if isinstance(message, Progress):
                    self._progress(message)
                elif isinstance(message, NfoptError):
                    raise message
                else:
                    assert worker.trial is not None
                    trial, worker.trial = worker.trial, None
                    return Finished(trial, message, time.monotonic() - worker.begun)

    def stop(self) -> None:
        """End every worker; what they have under way goes on from its state file another time."""
        for worker in self._workers:
            worker.connection.close()
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()


def _gone(worker: _Worker) -> RecipeError:
    worker.process.join()
    code = worker.process.exitcode
    how = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
    what = "" if worker.trial is None else f" in the training {worker.trial.name}"
    return RecipeError(
        f"a worker process died{what} ({how}). What it wrote stands above; SIGKILL mostly means too little "
        "memory: give fewer processes. Everything finished is kept; continue with --resume."
    )


@contextmanager
def crew_of(processes: int, threads: int, progress: ProgressCallback) -> Iterator[Crew]:
    """Yield a crew; with one process it is this one, and its number of threads is restored afterwards.

    Args:
        processes: trainings at a time.
        threads: threads of each; the numbers depend on it in their last digits, on `processes` not at all.
        progress: hears how far each training is.
    """
    if processes > 1:
        workers = WorkerProcesses(processes, threads, progress)
        try:
            yield workers
        finally:
            workers.stop()
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield OneProcess(progress)
    finally:
        torch.set_num_threads(before)


def _work(connection: Connection, threads: int) -> None:
    """Train what comes over the connection until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent alone answers it
    torch.set_num_threads(threads)
    # A connection that is closed at the other end means that nobody wants the results any more.
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            trial, state_file = connection.recv()
            try:
                message: Any = trial.run(state_file, connection.send)
            except NfoptError as error:
                message = error
            connection.send(message)
