import math
from dataclasses import replace

import pytest
import torch

from nfopt.experiments.fitting import FitConfig, fit
from nfopt.experiments.question import ExperimentError
from nfopt.experiments.readers import READERS
from nfopt.experiments.tasks import Classification, Regression
from nfopt.zoo import Zoo
from tests.experiments.toys import siren_zoo

ZOO = siren_zoo(60)
TASK = Regression("frequency")
CONFIG = FitConfig(total_steps=12, batch_size=7, lr=1e-2, evaluations=4)


def network(name="statnn", width=8, task=TASK, zoo=ZOO, seed=0):
    return READERS[name].make(task.question(zoo), width, seed)


def run(config=CONFIG, zoo=ZOO, task=TASK, **options):
    made = options.pop("made", None) or network(task=task, zoo=zoo)
    return fit(made, task, zoo, task.targets(zoo), config, **options), made


def noisy(tensors, generator):
    return {n: t + 0.01 * torch.randn(t.shape, generator=generator) for n, t in tensors.items()}


def changed(zoo, side, seed=5):
    """The zoo with other nets and facts on one side."""
    there = zoo.side == side
    draws = torch.Generator().manual_seed(seed)
    tensors = {n: t.clone() for n, t in zoo.tensors.items()}
    for tensor in tensors.values():
        tensor[there] = torch.randn(tensor[there].shape, generator=draws)
    facts = {n: f.clone() for n, f in zoo.facts.items()}
    facts["frequency"][there] += 7
    return Zoo(zoo.spec, tensors, facts, zoo.side)


class StoppedError(Exception):
    pass


def stopping_at(step):
    def hear(progress):
        if progress.done == step:
            raise StoppedError

    return hear


@pytest.mark.parametrize("stop", [1, 6, 11])
@pytest.mark.parametrize("augment", [None, noisy])
def test_a_fit_that_was_stopped_ends_with_the_same_numbers(tmp_path, stop, augment):
    config = replace(CONFIG, save_every_s=0.0)
    whole, trained = run(config, augment=augment)
    state = tmp_path / "state.safetensors"
    with pytest.raises(StoppedError):
        run(config, augment=augment, state_file=state, progress=stopping_at(stop))
    again, resumed = run(config, augment=augment, state_file=state)
    assert replace(again, seconds=0) == replace(whole, seconds=0)
    for name, value in trained.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


def test_a_state_of_other_settings_is_not_continued(tmp_path):
    state = tmp_path / "state.safetensors"
    with pytest.raises(StoppedError):
        run(replace(CONFIG, save_every_s=0.0), state_file=state, progress=stopping_at(3))
    with pytest.raises(ExperimentError, match="other settings"):
        run(replace(CONFIG, lr=2e-2), state_file=state)


def test_nothing_of_the_test_side_reaches_the_training_or_the_choice():
    (one, first), (other, second) = run(), run(zoo=changed(ZOO, 2))
    assert (one.validation, one.best_step) == (other.validation, other.best_step)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    assert one.scores["test"] != other.scores["test"]


def test_nothing_of_the_validation_side_reaches_the_weights_of_a_step():
    config = replace(CONFIG, evaluations=1)
    (_, first), (_, second) = run(config), run(config, zoo=changed(ZOO, 1))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_the_best_look_at_the_validation_side_is_chosen_and_scored():
    found, trained = run(replace(CONFIG, lr=0.3, total_steps=40, evaluations=10))
    assert found.best_step == found.steps[found.validation.index(min(found.validation))]
    assert found.score("val", "mse") == min(found.validation)
    with torch.no_grad():
        test = TASK.scores(trained.eval(), ZOO, TASK.targets(ZOO), "test")
    assert test == found.scores["test"]


def test_where_higher_is_better_the_highest_is_chosen():
    task = Classification()
    found, _ = run(replace(CONFIG, lr=0.1, total_steps=40, evaluations=10), task=task)
    assert found.score("val", "accuracy") == max(found.validation)


def test_a_fit_learns_what_can_be_learned():
    zoo = siren_zoo(300)
    config = FitConfig(total_steps=150, batch_size=32, lr=1e-2)
    found, _ = run(config, zoo=zoo, made=network(width=32, zoo=zoo))
    assert found.scores["test"]["explained"] > 0.8


def test_a_fit_that_diverges_says_so_and_keeps_its_best_point():
    config = replace(CONFIG, lr=1e30, schedule="constant", total_steps=40, evaluations=40, clip=0.0)
    found, _ = run(config)
    assert found.diverged_at is not None and found.diverged_at < 40
    assert all(value == value for value in found.validation)


def test_looks_are_evenly_spread_and_the_last_is_at_the_end():
    for total in (1, 3, 10, 17, 100):
        for looks in (1, 3, 10):
            config = FitConfig(total_steps=total, evaluations=looks)
            seen = [step for step in range(1, total + 1) if config.is_looked_at(step)]
            assert seen[-1] == total and len(seen) == min(total, looks)


def test_the_one_cycle_rises_to_the_rate_and_falls_to_nothing():
    config = FitConfig(total_steps=50, lr=3.0)
    rates = [config.rate(step) for step in range(50)]
    assert max(rates) == 3.0 and rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] < 0.02
    assert {replace(config, schedule="constant").rate(step) for step in range(50)} == {3.0}


def test_a_zoo_without_a_side_is_refused():
    zoo = ZOO.subset(ZOO.side != 1)
    with pytest.raises(ExperimentError, match="0 for validation"):
        run(zoo=zoo)


def test_settings_that_make_no_sense_are_refused():
    for options in ({"total_steps": 0}, {"lr": 0.0}, {"batch_size": 0}, {"clip": -1.0}):
        with pytest.raises(ExperimentError):
            FitConfig(**{"total_steps": 3, **options})


def test_a_score_that_is_not_finite_is_no_score():
    class Blind(Regression):
        def scores(self, network, zoo, targets, side):
            return {"mse": 1.0 if side == "val" else math.inf, "other": 2.0}

    found, _ = run(task=Blind("frequency"))
    assert found.scores == {"val": {"mse": 1.0, "other": 2.0}, "test": {"other": 2.0}}
    assert found.score("test", "mse") is None
