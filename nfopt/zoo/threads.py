"""Threads for nets that are trained side by side on a CPU, each with operations of one thread."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

import torch


@contextmanager
def one_thread_per_operation() -> Iterator[None]:
    """Let every operation of torch run in its caller's thread.

    Threads that share one operation wait for each other after it, and these operations are small: on a
    machine that has other work to do, they would wait most of the time.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_in_threads(tasks: Sequence[Callable[[], None]], workers: int, stop: Event) -> None:
    """Run tasks in `workers` threads; on an error `stop` is set, the others end, and it is raised."""
    with one_thread_per_operation():
        if workers <= 1:
            for task in tasks:
                task()
            return
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(task) for task in tasks]
            try:
                for future in futures:
                    future.result()
            finally:
                stop.set()
                for future in futures:
                    future.cancel()
