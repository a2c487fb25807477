"""The comparison's bookkeeping: who is tuned on what, what is reported, and what is not hidden."""

import json

import pytest
import torch
from meta_toys import MomentumRule, momentum_theta

from nfopt.errors import NfoptError
from nfopt.meta.baselines import LAYOUT, AdamWRule, settings
from nfopt.meta.evaluate import Comparison, Method, compare, mean_and_error, steps_to, summarise
from nfopt.meta.nets import Architecture
from nfopt.meta.task import TaskConfig
from nfopt.meta.unroll import Vmapped

CONFIG = TaskConfig(
    Architecture("mlp", (7,), 10, (1, 8, 8)),
    batch_images=16,
    train_images=101,
    validation_images=67,
    horizon=25,
)
COMPARISON = Comparison(tuning_seeds=2, seeds=3, every=10, copies=4)


def adamw(*learning_rates: float) -> Method:
    grid = settings(learning_rates, (0.0,), (0.9,), ("linear",))
    candidates = torch.tensor([list(entry.values()) for entry in grid])
    return Method("adamw", lambda task: Vmapped(AdamWRule()), LAYOUT, candidates, tuple(grid))


def nominal(log_step: float = 0.0, name: str = "nominal") -> Method:
    theta, layout = momentum_theta()
    theta[0] = log_step
    return Method(name, lambda task: Vmapped(MomentumRule()), layout, theta[None], ({},))


def test_tuning_chooses_the_rate_with_the_lowest_validation_loss() -> None:
    pieces = {}

    def piece(name, compute):
        pieces[name] = compute()
        return pieces[name]

    compared = compare("t", CONFIG, [adamw(1e-5, 0.02, 1e4), nominal()], COMPARISON, piece)
    assert sorted(pieces) == ["t-adamw-final", "t-adamw-tune", "t-nominal-final"]
    losses = [float("inf") if v is None else v for v in pieces["t-adamw-tune"]["validation_loss"]]
    assert losses.index(min(losses)) == pieces["t-adamw-tune"]["chosen"] == 1
    entry = compared["methods"]["adamw"]
    assert entry["setting"]["learning_rate"] == 0.02
    assert entry["at_edge"] == []
    assert entry["candidates"] == 3
    assert compared["methods"]["nominal"]["candidates"] == 1


def test_a_choice_at_the_grids_edge_is_reported() -> None:
    compared = compare("t", CONFIG, [adamw(1e-5, 1e-4, 0.02), nominal()], COMPARISON)
    assert compared["methods"]["adamw"]["at_edge"] == ["learning_rate"]


def test_the_same_rule_under_two_names_has_the_same_numbers_and_no_gap() -> None:
    compared = compare("t", CONFIG, [adamw(0.02), nominal(), nominal(name="copy")], COMPARISON)
    one, other = compared["methods"]["nominal"], compared["methods"]["copy"]
    assert one == other
    assert other["validation_minus_nominal"] == {"values": [0.0] * 3, "mean": 0.0, "error": 0.0}
    assert len(set(one["validation"]["values"])) == 3


def test_the_number_of_copies_side_by_side_does_not_matter() -> None:
    few, many = (
        compare("t", CONFIG, [adamw(0.001, 0.02), nominal()], Comparison(2, 3, 10, copies))
        for copies in (2, 50)
    )
    for name in ("adamw", "nominal"):
        for key in ("train", "validation", "test", "accuracy"):
            assert few["methods"][name][key]["values"] == pytest.approx(
                many["methods"][name][key]["values"], rel=1e-4
            )


def test_training_loss_is_below_test_loss_where_few_images_are_fitted() -> None:
    config = TaskConfig(CONFIG.architecture, "digits", 16, 32, 67, horizon=150)
    compared = compare("t", config, [adamw(0.03), nominal()], COMPARISON)
    entry = compared["methods"]["adamw"]
    assert entry["train"]["mean"] < 0.5 * entry["test"]["mean"]
    assert 0.3 < entry["accuracy"]["mean"] < 0.9


def test_a_diverging_method_is_counted_and_has_no_mean() -> None:
    compared = compare("t", CONFIG, [adamw(0.02), nominal(log_step=800.0)], COMPARISON)
    entry = compared["methods"]["nominal"]
    assert entry["diverged"] == 3
    assert entry["validation"]["mean"] is None
    assert entry["steps_to_target"]["values"] == [None] * 3
    json.dumps(compared, allow_nan=False)


def test_kept_pieces_are_used_again_and_not_computed() -> None:
    kept: dict = {}
    methods = [adamw(0.001, 0.02), nominal()]

    def keep(name, compute):
        return kept.setdefault(name, json.loads(json.dumps(compute())))

    first = compare("t", CONFIG, methods, COMPARISON, keep)

    def refuse(name, compute):
        return kept[name]

    assert compare("t", CONFIG, methods, COMPARISON, refuse) == first


def test_a_comparison_without_its_target_is_refused() -> None:
    with pytest.raises(NfoptError, match="'adamw'"):
        compare("t", CONFIG, [nominal()], COMPARISON)
    with pytest.raises(NfoptError, match="candidates"):
        Method("m", lambda task: Vmapped(MomentumRule()), LAYOUT, torch.zeros(2, 4), ({},))


def test_steps_to_a_target_count_from_the_first_evaluation_at_or_below_it() -> None:
    curve = [3.0, None, 2.0, 1.0, 2.5]
    assert steps_to(curve, 2.0, 25, 10) == 25
    assert steps_to(curve, 2.0, 50, 10) == 30
    assert steps_to(curve, 3.0, 50, 10) == 10
    assert steps_to(curve, 0.5, 50, 10) is None
    assert steps_to(curve, None, 50, 10) is None


def test_the_target_is_the_tuned_baselines_mean_final_validation_loss() -> None:
    def rows(validation: list[float], curve: list[float]) -> dict:
        same = dict.fromkeys(("train", "test", "accuracy", "validation"), validation)
        return {"setting": {}, "at_edge": [], "candidates": 1, "curve": [curve, curve], **same}

    compared = summarise(
        {"adamw": rows([1.0, 3.0], [4.0, 3.0, 2.0]), "nominal": rows([1.0, 2.0], [2.5, 1.9, 1.0])},
        30,
        Comparison(),
    )
    assert compared["target_loss"] == 2.0
    assert compared["methods"]["adamw"]["steps_to_target"]["values"] == [30, 30]
    assert compared["methods"]["nominal"]["steps_to_target"]["values"] == [20, 20]
    assert compared["methods"]["adamw"]["test_minus_nominal"]["values"] == [0.0, 1.0]
    assert compared["methods"]["adamw"]["test_minus_nominal"]["mean"] == 0.5
    assert compared["methods"]["adamw"]["test_minus_nominal"]["error"] == pytest.approx(0.5)


def test_means_and_errors_are_missing_where_a_value_is() -> None:
    assert mean_and_error([1.0, 2.0, 3.0]) == {"mean": 2.0, "error": pytest.approx((1 / 3) ** 0.5)}
    assert mean_and_error([1.0, None]) == {"mean": None, "error": None}
    assert mean_and_error([1.0]) == {"mean": 1.0, "error": None}
