"""Processes on this machine that share one meta-training: the caller leads, the others follow, by pipes.

Pipes instead of a process group: no port, no timeout, and a process that dies closes its pipe, so the others
hear of it at once.
"""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor

from nfopt.errors import NfoptError
from nfopt.meta.workers import OneProcess, Workers

ROWS, FAILED = b"r", b"f"
PATIENCE_S = 10  # how long a process that has nothing left to do may take to end


class LocalLeader:
    """The calling process, rank 0: it adds the rows of all and tells everyone the sum."""

    rank = 0

    def __init__(self, followers: Sequence[tuple[BaseProcess, Connection]]) -> None:
        self._followers = list(followers)

    @property
    def count(self) -> int:
        """Number of processes."""
        return 1 + len(self._followers)

    def total(self, rows: Tensor) -> Tensor:
        """Return the elementwise sum of `rows` over all processes, on every process.

        Raises:
            NfoptError: another process has failed or died.
        """
        summed = rows.cpu().clone()
        for number in range(len(self._followers)):
            summed += _from_bytes(self._received(number), summed)
        message = ROWS + _to_bytes(summed)
        for number, (_, pipe) in enumerate(self._followers):
            try:
                pipe.send_bytes(message)
            except OSError as error:
                raise self._death(number) from error
        return summed.to(rows.device)

    def wait(self) -> None:
        """Return once every process has come here."""
        self.total(torch.zeros(0))

    def _received(self, number: int) -> bytes:
        try:
            message = self._followers[number][1].recv_bytes()
        except (EOFError, OSError) as error:
            raise self._death(number) from error
        if message[:1] == FAILED:
            raise NfoptError(message[1:].decode())
        return message[1:]

    def _death(self, number: int) -> NfoptError:
        process = self._followers[number][0]
        process.join(PATIENCE_S)
        code = process.exitcode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
        return NfoptError(
            f"worker process {number + 1} (of {self.count}, counted from 0) {how} too early. If "
            "it has said why, that stands above; a kill by signal 9 mostly means that memory ran out: use "
            "fewer processes. Nothing before the last checkpoint is lost: resume the run."
        )


class LocalFollower:
    """One of the other processes.

    Args:
        rank: its number, from 1.
        count: number of processes.
        pipe: to the leader.
    """

    def __init__(self, rank: int, count: int, pipe: Connection) -> None:
        self.rank = rank
        self.count = count
        self._pipe = pipe

    def total(self, rows: Tensor) -> Tensor:
        """Return the elementwise sum of `rows` over all processes, on every process."""
        self._pipe.send_bytes(ROWS + _to_bytes(rows))
        return _from_bytes(self._pipe.recv_bytes()[1:], rows).to(rows.device)

    def wait(self) -> None:
        """Return once every process has come here."""
        self.total(torch.zeros(0))


@contextmanager
def local_workers(
    processes: int, follow: Callable[..., None], arguments: Sequence[Any] = (), threads: int = 1
) -> Iterator[Workers]:
    """Start processes that run `follow(workers, *arguments)` beside the caller, who leads.

    The caller and the others have to make the same calls of `total` and `wait`, in the same order. At the
    end of the block, the others are waited for; when it raises, they are ended.

    Args:
        processes: how many in all, this one included; 1 starts none.
        follow: a function of a module, as a fresh interpreter has to find it.
        arguments: plain values that can be sent to another process.
        threads: of every process, this one included; afterwards this one has its own number again. How a sum
            is split over threads decides its rounding, so with equal `threads` any number of processes
            computes the same numbers.

    Raises:
        NfoptError: processes or threads are below 1.
    """
    if min(processes, threads) < 1:
        raise NfoptError(f"processes and threads must be at least 1, not {processes} and {threads}.")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    followers: list[tuple[BaseProcess, Connection]] = []
    done = False
    try:
        # A fork would inherit the state of torch's threads, and may hang.
        context = multiprocessing.get_context("spawn")
        for rank in range(1, processes):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_followed,
                args=(rank, processes, theirs, threads, follow, tuple(arguments)),
                daemon=True,
            )
            process.start()
            theirs.close()
            followers.append((process, ours))
        yield LocalLeader(followers) if followers else OneProcess()
        done = True
    finally:
        torch.set_num_threads(before)
        for process, pipe in followers:
            pipe.close()
            if not done:
                process.terminate()
            process.join(PATIENCE_S)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()


def _followed(
    rank: int,
    count: int,
    pipe: Connection,
    threads: int,
    follow: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    # Ctrl-C reaches every process of the terminal; the leader decides, and its end closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    try:
        follow(LocalFollower(rank, count, pipe), *arguments)
    except NfoptError as error:
        _tell(pipe, str(error))
    except (EOFError, ConnectionError):
        return  # the leader is gone, and with it the work


def _tell(pipe: Connection, message: str) -> None:
    try:
        pipe.send_bytes(FAILED + message.encode())
    except OSError:
        return  # the leader has met the same error, and has gone


def _to_bytes(rows: Tensor) -> bytes:
    return rows.detach().cpu().contiguous().numpy().tobytes()


def _from_bytes(message: bytes, like: Tensor) -> Tensor:
    if len(message) != like.numel() * like.element_size():
        raise NfoptError(
            f"a worker process sent {len(message)} bytes, not {like.numel() * like.element_size()}: "
            "the processes do not run the same code or recipe."
        )
    if not message:
        return torch.zeros_like(like, device="cpu")
    return torch.frombuffer(bytearray(message), dtype=like.dtype).reshape(like.shape)
