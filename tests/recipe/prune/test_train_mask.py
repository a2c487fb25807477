from pathlib import Path

import pytest
import torch

from nfopt.pruning import neural_score, prune
from nfopt.recipe import load_recipe, recipe_faults, run_recipe
from nfopt.recipe.prune.train_mask import load_trained
from tests.pruning.nets import batches, mlp

RECIPE = """
kind: train_mask
tasks:
  mlp:
    source: digits
    options: {hidden: [7, 5]}
    training: {total_steps: 9, batch_size: 13}
    score_batches: 2
nets: 1
survivors: [0.5, 0.2]
network: {channels: 5, element_channels: 3, look_ahead_steps: 2, rounds: 3}
imitation: {steps: 4}
search: {generations: 1, pairs: 1, tasks_each: 1, densities: [0.3]}
"""


def load(folder, *overrides):
    (folder / "small.yaml").write_text(RECIPE)
    return load_recipe(folder / "small.yaml", [f"output={folder / 'out'}", *overrides])


def test_the_network_is_taught_searched_compared_and_written(tmp_path):
    outcome = run_recipe(load(tmp_path))
    results = outcome.result.results
    assert results["chosen"] in ("imitated", "searched")
    assert set(results["trained_log_loss"]) == {"synflow", "imitated", "searched"}
    network = load_trained(outcome.folder)
    assert float(network.gain) == pytest.approx(results["gain"])
    mask = prune(mlp(), 0.3, neural_score(network), batches=batches(), on_empty_layer="allow")
    assert mask.kept_count == round(0.3 * mask.total_count)
    assert all(len(row) == len(table.columns) for table in outcome.result.tables for row in table.rows)


def test_a_run_whose_search_was_lost_goes_on_to_the_same_network(tmp_path):
    first = run_recipe(load(tmp_path))
    theta = load_trained(first.folder).state_dict()
    for file in ("results.json", "search.safetensors", "mask.safetensors"):
        (first.folder / file).unlink()
    second = run_recipe(load(tmp_path), resume=True)
    assert all(torch.equal(theta[k], v) for k, v in load_trained(second.folder).state_dict().items())


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("tasks.mlp.source=fashion_mnist", "held out"),
        ("survivors=[0.2, 0.5]", "must fall"),
        ("search.sigma=0.0", "sigma and step > 0"),
        ("network.round=3", "Did you mean 'rounds'"),
    ],
)
def test_every_kind_of_fault_is_found(tmp_path, override, part):
    (tmp_path / "small.yaml").write_text(RECIPE)
    faults = recipe_faults(tmp_path / "small.yaml", [override])
    assert len(faults) == 1
    assert part in str(faults[0])


@pytest.mark.parametrize(
    "name",
    [
        "train_mask",
        "train_mask_smoke",
        "train_mask_exchange",
        "train_mask_added",
        "train_mask_at_init",
        "train_mask_ticket95",
    ],
)
def test_the_recipes_that_come_along_have_no_faults(name):
    file = Path(__file__).parents[3] / "recipes" / f"{name}.yaml"
    assert "imitate" in "\n".join(load_recipe(file).plan())


@pytest.mark.slow
def test_the_smoke_recipe_teaches_a_network_that_predicts_survival(tmp_path):
    file = Path(__file__).parents[3] / "recipes" / "train_mask_smoke.yaml"
    outcome = run_recipe(load_recipe(file, [f"output={tmp_path / 'out'}"]))
    for fit in outcome.result.results["imitation"].values():
        assert fit["after"] < fit["before"]


def test_an_exchange_can_be_added_to_a_pointwise_network_of_a_checkpoint(tmp_path):
    alone = run_recipe(
        load(tmp_path, "network.pointwise=true", "search.generations=0", f"output={tmp_path / 'alone'}")
    )
    start = alone.folder / "mask.safetensors"
    both = run_recipe(load(tmp_path, "network.added_exchange=true", "search.generations=0", f"start={start}"))
    pointwise = load_trained(alone.folder).ranking.state_dict()
    kept = load_trained(both.folder).ranking.pointwise.state_dict()
    assert pointwise.keys() == kept.keys()
    assert all(torch.equal(value, kept[name]) for name, value in pointwise.items())
