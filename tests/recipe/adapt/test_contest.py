import pytest

from nfopt.recipe import load_recipe, recipe_faults, run_recipe

SMALL = """
kind: adapt_contest
data: {name: digits, n_train: 211, n_val: 61}
nets: {model: {name: cnn, options: {channels: [3, 5]}}, train: 2, val: 1, total_steps: 5}
tuning_domains: [gaussian:5]
domains: [contrast:3]
images: [11]
methods:
  bn: {method: bn, tune: {source_count: [0.0, 8.0]}}
  nf: {method: nf}
  finetune: {method: finetune, options: {steps: 2}}
stream: {batch: 11, images: 25}
device: cpu
"""


@pytest.fixture
def recipe(tmp_path):
    def load(*overrides, text=SMALL):
        (tmp_path / "contest.yaml").write_text(text)
        return load_recipe(tmp_path / "contest.yaml", [f"output={tmp_path / 'out'}", *overrides])

    return load


def test_every_method_edits_every_net_in_every_domain(recipe, tmp_path):
    outcome = run_recipe(recipe())
    found = outcome.result.results
    trials = found["trials"]["11"]
    assert len(trials) == 4 * 2 * 2  # with the unedited nets; with the clean domain
    assert {t["method"] for t in trials} == {"source", "bn", "nf", "finetune"}
    unedited = [t for t in trials if t["method"] == "source"]
    assert {t["clean"] for t in unedited if t["net"] == 0} == {
        t["target"] for t in unedited if t["net"] == 0 and t["domain"] == "clean"
    }
    tried = found["tuned"]["11"]["bn"]
    assert tried["setting"] in tried["tried"] and len(tried["tried"]) == 2
    table, one_sided, streams = outcome.result.tables
    assert len(found["streams"]) == 3 * 2 * 4  # no stream for finetune; orders, reset and carried on
    assert [row[0] for row in streams.rows] == ["source", "bn", "nf"]
    assert table.columns == ("domain", "source", "bn", "nf", "finetune*", "oracle")
    assert [row[0] for row in table.rows] == ["contrast:3", "mean", "±", "gap", "clean", "from clean"]
    assert dict(zip(table.columns, table.rows[3], strict=True))["source"] == "0.00"
    assert "few classes" in one_sided.title
    assert (tmp_path / "out" / "contest.png").stat().st_size > 0


def test_sets_of_target_images_are_drawn_anew_and_nets_are_averaged_over_them(recipe):
    text = SMALL.replace("  nf: {method: nf}\n  finetune: {method: finetune, options: {steps: 2}}\n", "")
    short = ("images=[7]", "one_sided=null", "stream=null", "draws=3", "oracle_steps=1")
    found = run_recipe(recipe(*short, text=text)).result
    edits = [t for t in found.results["trials"]["7"] if t["method"] == "bn" and t["domain"] == "contrast:3"]
    assert [(t["net"], t["draw"]) for t in edits] == [(n, d) for d in range(3) for n in range(2)]
    assert len({t["target"] for t in edits}) > 2  # not the same images again
    mean = f"{100 * sum(t['target'] for t in edits) / 6:.1f}"
    assert found.tables[0].rows[0][2] == mean


def test_streams_are_tried_once_more_with_a_gate(recipe):
    short = ("one_sided=null", "oracle_steps=1", "stream.gate={max_target_shift: 0.0, sure: 0.0}")
    found = run_recipe(recipe(*short)).result
    trials, table = found.results["streams"], found.tables[-1]
    assert len(trials) == (1 + 2 * 2) * 2 * 4  # source has nothing to refuse
    assert [row[0] for row in table.rows] == ["source", "bn", "bn, gated", "nf", "nf, gated"]
    assert {t["refused"] for t in trials if not t["gated"]} == {0}
    refused = [t["refused"] for t in trials if t["gated"]]
    assert sum(refused) > 0
    shares = [f"({100 * (a + b) / 2:.0f})" for a, b in zip(refused[::2], refused[1::2], strict=True)]
    assert [cell.split()[-1] for row in table.rows if "gated" in row[0] for cell in row[1:]] == shares


def test_a_contest_that_was_stopped_is_not_begun_again(recipe, monkeypatch):
    from nfopt.recipe.adapt import contest as adapt_contest

    whole = run_recipe(recipe()).result.results
    monkeypatch.setattr(adapt_contest, "contest", None)
    monkeypatch.setattr(adapt_contest, "tuned", None)
    monkeypatch.setattr("nfopt.recipe.adapt.streams.stream_accuracy", None)
    assert run_recipe(recipe(), resume=True).result.results == whole


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("source_count: [0.0, 8.0]", "source_cnt: [0.0]", "Did you mean 'source_count'"),
        ("source_count: [0.0, 8.0]", "source_count: [-1.0]", "at least 0"),
        ("  nf: {", "  oracle: {", "call the method otherwise"),
        ("method: nf}", "method: fn}", "Known: bn, bn-eb, eata, finetune, nf, nf-bn"),
    ],
)
def test_faults_are_said_with_what_was_meant(tmp_path, old, new, says):
    assert old in SMALL
    (tmp_path / "bad.yaml").write_text(SMALL.replace(old, new, 1))
    faults = recipe_faults(tmp_path / "bad.yaml")
    assert len(faults) == 1 and says in str(faults[0])
