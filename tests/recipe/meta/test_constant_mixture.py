"""Constant mixtures: decisions that never change, searched at random and kept as a checkpoint."""

import json
from pathlib import Path

import pytest
import torch

from nfopt.optim import LearnedUpdateRule, RuleConfig
from nfopt.optim.rule_checkpoint import read_rule
from nfopt.recipe import load_recipe, run_recipe
from nfopt.recipe.meta.constant_mixture import CONSTANTS, draw_constants, theta_of
from nfopt.symmetry import PermutationSpec

TINY = {
    "kind": "constant_mixture",
    "family": {
        "sources": ["digits"],
        "kinds": [["mlp", 1.0]],
        "widths": [5, 7],
        "depths": [1, 1],
        "batch_images": [8, 8],
        "train_images": [50, 50],
        "horizon": [20, 25],
    },
    "candidates": 8,
    "rounds": 2,
    "first_tasks": 2,
}


def decisions(constants: dict[str, float], progress: float) -> dict[str, torch.Tensor]:
    rule = LearnedUpdateRule(PermutationSpec.uncoupled({"w": (5, 3), "v": (7,)}), RuleConfig())
    draw = torch.Generator().manual_seed(1)
    params = {n: torch.randn(s, generator=draw) for n, s in (("w", (5, 3)), ("v", (7,)))}
    theta = theta_of(constants, rule.init_theta(draw))
    found = rule.propose(theta, params, params, rule.init_state(params), torch.tensor(progress)).controls
    return {"log_step": found.log_step, "fast_share": found.fast_share, "gain": found.gain}


def test_a_constant_is_added_to_the_nominal_control_of_its_tensors_at_any_time() -> None:
    constants = dict.fromkeys(CONSTANTS, 0.0) | {
        "log_step": 0.5,
        "log_step_of_matrices": 0.25,
        "fast_share": -0.2,
    }
    for progress in (0.1, 0.9):
        found = decisions(constants, progress)
        assert found["fast_share"].tolist() == pytest.approx([0.3, 0.3])
        assert float(found["log_step"][1]) == pytest.approx(0.5)
        # Both constants pass through one bounded output, so their sum bends a little.
        assert float(found["log_step"][0]) == pytest.approx(0.727, abs=1e-3)
        assert torch.equal(found["gain"], torch.ones(5 + 3 + 7))


def test_the_best_candidate_of_a_search_is_a_checkpoint_and_the_same_every_time(tmp_path: Path) -> None:
    results = []
    for name in ("a", "b"):
        file = tmp_path / f"{name}.yaml"
        file.write_text(json.dumps(TINY | {"output": str(tmp_path / name)}))
        results.append(run_recipe(load_recipe(file)))
    summaries = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("a", "b")]
    assert summaries[0] == summaries[1]
    constants = summaries[0]["summary"]["constants"]
    drawn = [draw_constants(0, i) for i in range(8)]
    assert any(constants == pytest.approx(candidate) for candidate in drawn)
    _, theta, _ = read_rule(str(tmp_path / "a" / "checkpoint.safetensors"))
    assert theta["tensor_output"].any()
    assert not theta["entry_output"].any()
    # Two rounds: 9 candidates on 2 tasks, then the best quarter and the nominal point on 4 more.
    assert summaries[0]["summary"]["tasks"] == 6


def test_constants_are_drawn_within_their_bounds_and_by_their_seed() -> None:
    assert all(abs(v) <= CONSTANTS[n][2] for i in range(20) for n, v in draw_constants(3, i).items())
    assert draw_constants(3, 0) != draw_constants(3, 1)
    assert draw_constants(3, 0) == draw_constants(3, 0)
