from dataclasses import replace

import pytest
import torch
from torch.func import functional_call

from nfopt.data import load_data
from nfopt.models import build_model
from nfopt.progress import silent
from nfopt.recipe import load_recipe, recipe_faults, run_recipe
from nfopt.recipe.adapt.proposers import aligned
from nfopt.zoo import Members, binary_classifiers

SMALL = """
kind: adapt_from_weights
data: {name: digits, n_train: 331, n_val: 61}
model: {name: mlp, options: {hidden: [5]}}
nets: [4, 2, 3]
net_steps: 5
domains: [rotation:2+gaussian:5, contrast:4]
proposers:
  flat, permuted: {kind: flat, hidden: 5, training: {total_steps: 2, nets: 2, check_every: 1, permute: true}}
  dws: {kind: layers, training: {total_steps: 2, nets: 2, check_every: 1}}
  aligned: {kind: flat, hidden: 5, aligned: true, lrs: [1e-3, 1e-2], training: {total_steps: 2, nets: 2}}
  transformer: {kind: reader, reader: transformer, hidden: 8, training: {total_steps: 2, nets: 2}}
  editor: {kind: editor, training: {total_steps: 2, nets: 2, check_every: 1}}
finetune_steps: 3
shots: [2]
device: cpu
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "weights.yaml").write_text(SMALL)
    return lambda *more: load_recipe(tmp_path / "weights.yaml", [f"output={tmp_path / 'out'}", *more])


def test_every_proposer_edits_every_unseen_net_and_a_second_run_keeps_it(recipe, monkeypatch):
    outcome = run_recipe(recipe())
    found = outcome.result.results["nets"]
    assert list(found) == ["rotation:2+gaussian:5", "contrast:4"]
    learned = ["flat, permuted", "dws", "aligned", "transformer", "editor"]
    for own in found.values():
        assert list(own) == ["none", *learned, "2-shot", "oracle"]
        assert all(len(scores["target"]) == len(scores["clean"]) == 3 for scores in own.values())
        assert own["aligned"]["lr"] in (1e-3, 1e-2)
    table, _, mean = outcome.result.tables
    assert "mean over 2 shifts" in mean.title and len(mean.rows) == len(table.rows)
    rows = {row[0]: row for row in table.rows}
    assert rows["none"][3] == "0.00" and rows["none"][2] == ""
    assert rows["oracle"][3] in ("1.00", "")
    from nfopt.recipe.adapt import from_weights as adapt_from_weights

    monkeypatch.setattr(adapt_from_weights, "train_proposer", None)
    assert run_recipe(recipe(), resume=True).result.results["nets"] == found


def test_aligned_nets_compute_what_they_did_in_other_numbers():
    data = load_data("digits", n_train=211, n_val=61)
    zoo = binary_classifiers(
        data,
        Members.counted(3, 1, 1),
        lambda: build_model("mlp", data.in_shape, 2, seed=3, options={"hidden": (7,)}),
        seed=0,
        steps=3,
    )
    permuted = replace(zoo, tensors=_renumbered(zoo))
    found = aligned(permuted, silent)
    assert found.tensors.keys() == zoo.tensors.keys()
    module = build_model("mlp", data.in_shape, 2, options={"hidden": (7,)}).eval()
    for net in range(len(zoo)):
        expected, moved, same = (
            functional_call(module, z.net(net), data.test.images[:11]) for z in (zoo, permuted, found)
        )
        torch.testing.assert_close(moved, expected)
        torch.testing.assert_close(same, expected)
    near, far = (
        sum((z.tensors[n][1] - z.tensors[n][0]).square().sum() for n in z.tensors) for z in (found, permuted)
    )
    assert near < far


def _renumbered(zoo):
    draw = torch.Generator().manual_seed(1)
    nets = [zoo.spec.act(zoo.spec.sample(draw), zoo.net(i)) for i in range(len(zoo))]
    return {name: torch.stack([net[name] for net in nets]) for name in nets[0]}


def test_the_plan_names_nets_shift_and_proposers(recipe):
    plan = "\n".join(recipe().plan())
    assert "4 + 2 + 3 classifiers mlp" in plan and "rotation:2+gaussian:5" in plan and "dws (layers)" in plan


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("kind: layers", "kind: layer", "layers"),
        ("hidden: 5, ", "hiden: 5, ", "Did you mean 'hidden'"),
        ("reader: transformer", "reader: statnn", "no reader that can edit; those are"),
        ("total_steps: 2, nets: 2, check_every: 1}}\n  aligned", "total_steps: 0}}\n  editor", "1 or more"),
    ],
)
def test_faults_are_said_with_what_was_meant(tmp_path, old, new, says):
    assert old in SMALL
    (tmp_path / "bad.yaml").write_text(SMALL.replace(old, new, 1))
    assert says in str(recipe_faults(tmp_path / "bad.yaml")[0])
