"""MetaTrainer: it learns, logs, selects, and resumes to the bit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from meta_toys import MomentumRule, momentum_theta

from nfopt.errors import CheckpointError, NfoptError
from nfopt.meta.backprop import TruncatedBackprop
from nfopt.meta.estimator import ES, PES, GradientEstimator
from nfopt.meta.family import TaskFamily
from nfopt.meta.objective import Objective
from nfopt.meta.outer import OuterConfig
from nfopt.meta.selection import Selection, longer_tasks
from nfopt.meta.slot import SlotSettings
from nfopt.meta.trainer import MetaTrained, MetaTrainer, TrainerConfig, half_cosine
from nfopt.meta.unroll import Vmapped

FAMILY = TaskFamily(
    sources=("digits",),
    kinds=(("mlp", 1.0),),
    widths=(5, 7),
    depths=(1, 2),
    batch_images=(8, 16),
    horizon=(7, 13),
)
LONGER = replace(FAMILY, horizon=(30, 40), norm_share=0.0, rescale_share=0.0)


def trainer(
    folder: Path,
    estimator: GradientEstimator,
    *,
    seed: int = 0,
    outer_steps: int = 6,
    log_step: float = -1.0,
    family: TaskFamily = FAMILY,
    shrink: tuple[float, ...] = (1.0,),
) -> MetaTrainer:
    nominal, layout = momentum_theta()
    nominal[0] = log_step
    rule = Vmapped(MomentumRule())
    objective = Objective(every=5)
    settings = SlotSettings(family, lambda task: rule, layout, estimator, objective, nominal, 4, 0.5, seed)
    selection = Selection(longer_tasks(family, 2, 0, 2), settings.rules, layout, objective, 1, 0)
    outer = OuterConfig(outer_steps, learning_rate=0.1)
    config = TrainerConfig(outer, 3, checkpoint_every=2, select_every=3, shrink=shrink)
    return MetaTrainer(settings, config, folder, selection=selection)


def log_without_times(folder: Path) -> list[dict]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if "second" not in k} for record in records]


def assert_same(one: MetaTrained, other: MetaTrained) -> None:
    assert {**vars(one), "theta": None} == {**vars(other), "theta": None}
    for name, value in one.theta.items():
        assert torch.equal(value, other.theta[name])


@pytest.mark.parametrize("estimator", [ES(), PES(truncation=5), TruncatedBackprop(5)])
@pytest.mark.parametrize("stops", [(1,), (2, 5)])
def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_bits(
    tmp_path: Path, estimator: GradientEstimator, stops: tuple[int, ...]
) -> None:
    whole = trainer(tmp_path / "whole", estimator).run()
    for stop in stops:
        trainer(tmp_path / "pieces", estimator).run(stop_after=stop)
    assert_same(trainer(tmp_path / "pieces", estimator).run(), whole)
    assert log_without_times(tmp_path / "pieces") == log_without_times(tmp_path / "whole")


class KilledError(Exception):
    pass


def test_a_run_killed_between_checkpoints_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", PES(truncation=5)).run()
    killed = trainer(tmp_path / "killed", PES(truncation=5))

    def kill(progress) -> None:
        if progress.done == 5:
            raise KilledError

    killed.progress = kill
    with pytest.raises(KilledError):
        killed.run()
    with (tmp_path / "killed" / "log.jsonl").open("a") as log:
        log.write('{"outer_step": 6, "meta_lo')
    assert_same(trainer(tmp_path / "killed", PES(truncation=5)).run(), whole)
    assert log_without_times(tmp_path / "killed") == log_without_times(tmp_path / "whole")


def test_another_seed_gives_another_theta(tmp_path: Path) -> None:
    one, other = (trainer(tmp_path / str(s), ES(), seed=s) for s in (0, 1))
    one.run()
    other.run()
    assert not torch.equal(one.outer.theta, other.outer.theta)


def test_meta_training_improves_a_rule_whose_steps_are_too_small(tmp_path: Path) -> None:
    improved = trainer(tmp_path, ES(sigma=0.1), outer_steps=9, log_step=-3.0, family=LONGER).run()
    assert improved.gain < -0.05
    assert float(improved.theta["log_step"]) > -2.8


def test_the_log_holds_what_tells_signal_from_noise(tmp_path: Path) -> None:
    trainer(tmp_path, ES()).run()
    records = log_without_times(tmp_path)
    assert [record["outer_step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert all(-1 <= record["half_cosine"] <= 1 for record in records)
    assert any(record["gain_over_nominal"] is not None for record in records)
    assert ["selection_gain" in record for record in records] == [False, False, True, False, False, True]


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, ES()).run(stop_after=1)
    with pytest.raises(NfoptError, match="another seed"):
        trainer(tmp_path, ES(), seed=1).run()


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, ES()).run(stop_after=1)
    file = next(tmp_path.glob("checkpoint-*/outer.safetensors"))
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="cannot be read"):
        trainer(tmp_path, ES()).run()


class Rank:
    """One of several processes that run one after the other: it keeps its own rows and adds the others'."""

    def __init__(self, rank: int, count: int, others: list[list[torch.Tensor]]) -> None:
        self.rank, self.count = rank, count
        self.mine: list[torch.Tensor] = []
        self._others = others

    def total(self, rows: torch.Tensor) -> torch.Tensor:
        self.mine.append(rows)
        k = len(self.mine) - 1
        return sum((other[k] for other in self._others), rows)

    def wait(self) -> None: ...


def test_slots_split_over_processes_give_the_same_gradient(tmp_path: Path) -> None:
    one = trainer(tmp_path / "one", ES(), outer_steps=1)
    one.run()
    first = trainer(tmp_path / "two", ES(), outer_steps=1)
    first.workers = Rank(0, 2, [])
    first.selection = None
    first.run()
    second = trainer(tmp_path / "three", ES(), outer_steps=1)
    second.workers = Rank(1, 2, [first.workers.mine])
    second.selection = None
    second.run()
    assert torch.equal(second.outer.theta, one.outer.theta)
    assert not torch.equal(first.outer.theta, one.outer.theta)


class FailsOn(Vmapped):
    """The momentum rule; if broken, the first step makes every parameter nan."""

    def __init__(self, broken: bool) -> None:
        super().__init__(MomentumRule())
        self.broken = broken

    def __call__(self, theta, params, grads, state, progress, step):
        updates, state = super().__call__(theta, params, grads, state, progress, step)
        return {n: u * (float("nan") if self.broken else 1.0) for n, u in updates.items()}, state


def failing(folder: Path, broken: Callable[[int], bool], estimator: GradientEstimator) -> MetaTrainer:
    made = trainer(folder, estimator, outer_steps=1)
    made.selection = None
    made.settings = replace(made.settings, rules=lambda task: FailsOn(broken(task.config.horizon)))
    return made


@pytest.mark.parametrize("estimator", [ES(), PES(truncation=5), TruncatedBackprop(5)])
def test_a_task_all_of_whose_copies_fail_is_left_out_of_the_outer_step(
    tmp_path: Path, estimator: GradientEstimator
) -> None:
    seen: list[int] = []
    counting = failing(tmp_path / "counting", lambda horizon: bool(seen.append(horizon)), estimator)
    counting.run()
    one = seen[0]
    some = failing(tmp_path / "some", lambda horizon: horizon == one, estimator)
    some.run()
    (record,) = log_without_times(tmp_path / "some")
    assert 1 <= record["skipped_slots"] < 3
    assert record["failures"] > 0
    assert record["gradient_norm"] > 0
    everything = failing(tmp_path / "all", lambda horizon: True, estimator)
    everything.run()
    (record,) = log_without_times(tmp_path / "all")
    assert (record["skipped_slots"], record["gradient_norm"], record["half_cosine"]) == (3, 0.0, None)
    assert torch.equal(everything.outer.theta, everything.settings.nominal)


def test_the_cosine_of_halves_is_one_for_a_common_gradient_and_small_for_noise() -> None:
    common = torch.randn(7, generator=torch.Generator().manual_seed(0)).expand(3, 4, 7)
    noise = torch.randn(3, 4, 4999, generator=torch.Generator().manual_seed(0))
    assert half_cosine(common) == pytest.approx(1)
    assert abs(half_cosine(noise) or 0) < 0.1
    assert half_cosine(noise[:, :1]) is None


def test_the_average_is_tried_nearer_to_the_nominal_point_too_and_the_best_is_kept(tmp_path: Path) -> None:
    plain = trainer(tmp_path / "plain", TruncatedBackprop(5), log_step=-4.0).run()
    tried = trainer(tmp_path / "shrunk", TruncatedBackprop(5), log_step=-4.0, shrink=(0.5, 1.0)).run()
    assert plain.gain < 0
    assert tried.gain <= plain.gain
    record = log_without_times(tmp_path / "shrunk")[tried.outer_step - 1]
    assert record["selection_shrink"] == tried.shrink
    assert record["selection_gain"] == tried.gain
    with pytest.raises(NfoptError, match="shrink"):
        TrainerConfig(shrink=(0.0,))
