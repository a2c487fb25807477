import pytest

from nfopt.recipe import load_recipe, recipe_faults, run_recipe

SMALL = """
kind: adapt_from_weights
data: {name: digits, n_train: 331, n_val: 61}
model: {name: mlp, options: {hidden: [5]}}
nets: [4, 2, 3]
net_steps: 5
domain: rotation:2+gaussian:5
proposers:
  flat, permuted: {kind: flat, hidden: 5, training: {total_steps: 2, nets: 2, check_every: 1, permute: true}}
  dws: {kind: layers, training: {total_steps: 2, nets: 2, check_every: 1}}
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
    assert list(found) == ["none", "flat, permuted", "dws", "editor", "2-shot", "oracle"]
    assert all(len(scores["target"]) == len(scores["clean"]) == 3 for scores in found.values())
    (table,) = outcome.result.tables
    rows = {row[0]: row for row in table.rows}
    assert rows["none"][3] == "0.00" and rows["none"][2] == ""
    assert rows["oracle"][3] in ("1.00", "")
    from nfopt.recipe import adapt_from_weights

    monkeypatch.setattr(adapt_from_weights, "train_proposer", None)
    assert run_recipe(recipe(), resume=True).result.results["nets"] == found


def test_the_plan_names_nets_shift_and_proposers(recipe):
    plan = "\n".join(recipe().plan())
    assert "4 + 2 + 3 classifiers mlp" in plan and "rotation:2+gaussian:5" in plan and "dws (layers)" in plan


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("kind: layers", "kind: layer", "layers"),
        ("hidden: 5, ", "hiden: 5, ", "Did you mean 'hidden'"),
        ("total_steps: 2, nets: 2, check_every: 1}}\n  editor", "total_steps: 0}}\n  editor", "1 or more"),
    ],
)
def test_faults_are_said_with_what_was_meant(tmp_path, old, new, says):
    assert old in SMALL
    (tmp_path / "bad.yaml").write_text(SMALL.replace(old, new, 1))
    assert says in str(recipe_faults(tmp_path / "bad.yaml")[0])
