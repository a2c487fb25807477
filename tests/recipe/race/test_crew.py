"""Worker processes: the numbers of one process, and clear errors when one dies."""

import os
import signal

import pytest
import torch

from nfopt.errors import DataError, RecipeError
from nfopt.recipe.inputs import DataOptions, ModelOptions
from nfopt.recipe.optimizers import AdamWOptions
from nfopt.recipe.race.crew import WorkerProcesses, crew_of
from nfopt.recipe.trial import Trial
from nfopt.training import TrainingConfig


def trial(seed=0, steps=11, data="digits"):
    return Trial(
        "toy",
        DataOptions(name=data, n_train=101, n_val=53),
        ModelOptions(name="mlp", options={"hidden": [7]}),
        AdamWOptions(name="adamw"),
        TrainingConfig(steps, 13, 5, seed),
        "cpu",
    )


def test_several_processes_give_the_curves_of_one_and_report_progress(tmp_path):
    trials = [trial(seed) for seed in range(3)]
    heard: list = []
    curves: dict = {}
    with crew_of(2, 1, heard.append) as crew:
        assert crew.free == 2
        for number, each in enumerate(trials):
            if not crew.free:
                done = crew.finished()
                curves[done.trial.name] = done.curve
            crew.begin(each, tmp_path / str(number))
        for _ in range(2):
            done = crew.finished()
            curves[done.trial.name] = done.curve
    with crew_of(1, 1, heard.append) as crew:
        for each in trials:
            crew.begin(each, tmp_path / "alone")
            assert crew.free == 0
            assert crew.finished().curve == curves[each.name]
    assert {progress.task for progress in heard} == {each.title for each in trials}


def test_one_process_leaves_the_number_of_threads_as_it_was():
    before = torch.get_num_threads()
    with crew_of(1, before + 1, lambda _: None):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.fixture
def one_worker():
    workers = WorkerProcesses(1, 1, lambda _: None)
    yield workers
    workers.stop()
    assert all(not worker.process.is_alive() for worker in workers._workers)


def test_a_worker_that_is_killed_is_an_error_that_says_how_to_go_on(one_worker, tmp_path):
    one_worker.begin(trial(steps=10**6), tmp_path / "s")
    os.kill(one_worker._workers[0].process.pid, signal.SIGKILL)
    with pytest.raises(RecipeError, match=r"killed by SIGKILL[\s\S]*--resume"):
        one_worker.finished()


@pytest.mark.slow
def test_bad_input_in_a_worker_is_the_error_that_it_is_here(one_worker, tmp_path, monkeypatch):
    missing = trial(data="mnist")
    missing = Trial(
        missing.task,
        DataOptions(name="mnist", data_dir=tmp_path),
        missing.model,
        missing.options,
        missing.config,
        missing.device,
    )
    one_worker.begin(missing, tmp_path / "s")
    with pytest.raises(DataError, match="not readable"):
        one_worker.finished()


@pytest.mark.slow
def test_a_worker_leaves_ctrl_c_to_its_parent(one_worker, tmp_path):
    one_worker.begin(trial(), tmp_path / "s")
    one_worker.finished()  # it has started up by now
    os.kill(one_worker._workers[0].process.pid, signal.SIGINT)
    one_worker.begin(trial(), tmp_path / "s")
    assert one_worker.finished().curve == trial().run()
