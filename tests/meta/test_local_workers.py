"""Local processes share one meta-training: the same numbers as one process, and a clear end when one dies."""

import os
import signal
from pathlib import Path

import pytest
import torch
from meta_toys import tiny_trainer

from nfopt.errors import NfoptError
from nfopt.meta.local_workers import local_workers
from nfopt.meta.workers import OneProcess, Workers

# One function for every way in which another process may behave: a start of an interpreter is dear.
COUNTED = torch.tensor([[1.0, 0.0, 3.0], [0.0, 2.0, 0.0]])


def follow(workers: Workers, task: str, folder: str) -> None:
    if task == "total":
        workers.total(COUNTED[workers.rank])
        workers.wait()
    elif task == "train":
        for stop in (3, None):
            tiny_trainer(Path(folder), workers).run(stop_after=stop)
    elif task == "refuse":
        raise NfoptError("the data set is gone.")
    elif task == "die" and workers.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    elif task == "short":
        workers.total(torch.zeros(5))
    elif task == "wait":
        workers.wait()
        (Path(folder) / "beyond").touch()


def test_the_sum_over_processes_is_there_on_every_one_and_threads_are_restored() -> None:
    torch.set_num_threads(1)
    with local_workers(2, follow, ("total", "")) as workers:
        assert (workers.rank, workers.count) == (0, 2)
        assert workers.total(COUNTED[0]).tolist() == [1.0, 2.0, 3.0]
        workers.wait()
    with local_workers(1, follow, (), threads=2) as workers:
        assert isinstance(workers, OneProcess)
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 1


def test_two_processes_stopped_and_resumed_take_the_same_outer_steps_as_one(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    with local_workers(1, follow):
        one = tiny_trainer(tmp_path / "one", OneProcess())
        one.run()
    with local_workers(2, follow, ("train", str(tmp_path / "two"))) as workers:
        tiny_trainer(tmp_path / "two", workers).run(stop_after=3)
        two = tiny_trainer(tmp_path / "two", workers)
        two.run()
    assert torch.equal(one.outer.theta, two.outer.theta)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("refuse", "the data set is gone"),
        ("die", "worker process 1 .* killed by signal 9"),
        ("short", "do not run the same code"),
    ],
)
def test_a_process_that_fails_ends_the_work_with_its_reason(task: str, message: str) -> None:
    with pytest.raises(NfoptError, match=message), local_workers(2, follow, (task, "")) as workers:
        workers.total(torch.zeros(3))


class StoppedError(Exception):
    pass


def test_when_the_leader_fails_the_others_end_without_going_on(tmp_path: Path) -> None:
    with pytest.raises(StoppedError), local_workers(2, follow, ("wait", str(tmp_path))):
        raise StoppedError
    assert not (tmp_path / "beyond").exists()


@pytest.mark.parametrize("counts", [(0, 1), (1, 0)])
def test_no_process_and_no_thread_are_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(NfoptError, match="at least 1"), local_workers(counts[0], follow, (), counts[1]):
        pass
