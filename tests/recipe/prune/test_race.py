from pathlib import Path

import pytest

from nfopt.recipe import load_recipe, recipe_faults, run_recipe
from nfopt.recipe.prune.race_report import RaceRows, paired

RECIPE = """
kind: prune_race
heats:
  small:
    data: {name: digits, n_train: 101, n_val: 53}
    model: {name: mlp, options: {hidden: [7, 5]}}
    total_steps: 6
    batch_size: 13
densities: [0.5, 0.25]
seeds: [0, 1]
methods:
  synflow: {score: synflow, rounds: 3}
  nf: {score: nf, controls: true}
  shares: {score: nf, head: allocation, at_init: false}
  imp: {score: imp, rounds: 2, at_init: false}
score_batches: 2
score_batch_size: 13
side_by_side: 4
device: cpu
"""


def load(folder, *overrides):
    (folder / "small.yaml").write_text(RECIPE)
    return load_recipe(folder / "small.yaml", [f"output={folder / 'out'}", *overrides])


def test_every_mask_and_control_is_trained_and_compared(tmp_path):
    outcome = run_recipe(load(tmp_path))
    trainings = outcome.result.results["trainings"]
    assert len(trainings) == 2 * (1 + 2 * (4 + 2))
    ways = {(row["method"], row["control"]) for row in trainings}
    assert ("nf", "shuffled") in ways and ("synflow", "shuffled") not in ways
    by_control = {
        row["control"]: row["test_loss"]
        for row in trainings
        if (row["method"], row["seed"], row["density"]) == ("nf", 0, 0.5)
    }
    assert len(set(by_control.values())) == 3
    verdict = outcome.result.results["verdicts"]["small"]["0.5"]
    assert verdict["best_rival"] == "synflow"
    assert set(verdict) >= {"against_best_rival", "against_shuffled", "against_reinitialised"}
    assert (outcome.folder / "accuracies-small.png").read_bytes().startswith(b"\x89PNG")
    for table in outcome.result.tables:
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_a_run_that_lost_a_piece_and_the_results_ends_with_the_same_numbers(tmp_path):
    first = run_recipe(load(tmp_path))
    trainings = first.result.results["trainings"]
    (first.folder / "results.json").unlink()
    next((first.folder / "pieces").glob("small-0.5-*-seed1.json")).unlink()
    assert run_recipe(load(tmp_path), resume=True).result.results["trainings"] == trainings


def rows(accuracies):
    return [
        {
            "heat": "h",
            "method": m,
            "control": c,
            "seed": s,
            "density": 0.1,
            "test_accuracy": a,
            "seconds": 1.0,
        }
        for (m, c), values in accuracies.items()
        for s, a in enumerate(values)
    ]


def race(accuracies):
    labels = {key: key for key, _ in accuracies}
    return RaceRows(rows(accuracies), ("h",), labels, (0.1,), ("snip", "synflow"), "nf", "synflow", "imp")


def test_the_verdict_is_paired_by_seed_against_the_best_rival():
    found = race(
        {
            ("snip", "none"): [0.50, 0.60],
            ("synflow", "none"): [0.60, 0.70],
            ("nf", "none"): [0.65, 0.77],
            ("nf", "shuffled"): [0.55, 0.67],
            ("imp", "none"): [0.68, 0.82],
        }
    ).verdict("h", 0.1)
    assert found["best_rival"] == "synflow"
    assert found["against_best_rival"] == pytest.approx([6.0, 1.0])
    assert found["against_reference"] == found["against_best_rival"]
    assert found["against_shuffled"] == pytest.approx([10.0, 0.0])
    assert found["gap_closed"] == pytest.approx(0.6)
    assert "against_reinitialised" not in found


def test_one_seed_has_no_spread_and_a_gap_that_is_none_has_no_share():
    assert paired({0: 3.0}, {0: 1.0}) == [2.0, 0.0]
    flat = {(m, "none"): [0.5] for m in ("snip", "synflow", "nf", "imp")}
    assert "gap_closed" not in race(flat).verdict("h", 0.1)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("ours=mine", "none of the methods"),
        ("methods.synflow.head=ranking", "settings of the score nf"),
        ("methods.synflow.mixed=false", "settings of the score nf"),
        ("methods.synflow.scope='2:4'", "leaves no density"),
        ("methods.synflow.score=synflo", "Did you mean 'synflow'"),
        ("seeds=[0, 0]", "must be distinct"),
        ("heats.small.lr=0.0", "greater than 0"),
    ],
)
def test_every_kind_of_fault_is_found(tmp_path, override, part):
    (tmp_path / "small.yaml").write_text(RECIPE)
    faults = recipe_faults(tmp_path / "small.yaml", [override])
    assert faults
    assert part in "\n".join(map(str, faults))


@pytest.mark.parametrize(
    "name",
    [
        "prune_ticket",
        "prune_ticket_mnist",
        "prune_ticket_cnn",
        "prune_ticket_resnet",
        "prune_core",
        "prune_core_cnn",
        "prune_core_resnet",
        "prune_ticket95",
        "prune_core_mnist",
        "prune_long",
        "prune_ticket_smoke",
        "prune_at_init",
    ],
)
def test_the_recipes_that_come_along_have_no_faults(name):
    file = Path(__file__).parents[3] / "recipes" / f"{name}.yaml"
    assert "masks by" in "\n".join(load_recipe(file).plan())


@pytest.mark.slow
def test_the_smoke_race_shows_the_learned_mask_ahead_of_its_rivals_and_its_shuffle(tmp_path):
    file = Path(__file__).parents[3] / "recipes" / "prune_ticket_smoke.yaml"
    outcome = run_recipe(load_recipe(file, [f"output={tmp_path / 'out'}", "device=cpu"]))
    for verdict in outcome.result.results["verdicts"]["digits-mlp"].values():
        assert verdict["against_best_rival"][0] > 2
        assert verdict["against_shuffled"][0] > 2
