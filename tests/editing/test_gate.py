import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nfopt.editing import Answers, Evidence, Finetune, Gate, Outcome, adapt, gate_score
from nfopt.editing.evidence import OWN_STATISTICS, answers, deep_shift, relative_changes, target_shift
from nfopt.errors import EditingError
from tests.editing.nets import mlp, moved, normed

SAID = Answers(True, confidence=0.7, effective_classes=8.0, top_share=0.2, logit_rms=2.0)
KNOWN = replace(SAID, accuracy=0.6)


def judged(
    gate=Gate(),  # noqa: B008
    *,
    target=None,
    source=None,
    held_out=None,
    before=None,
    weights=0.1,
    own=None,
    shift=None,
    shown=None,
):
    """Return the names of the failed checks of an edit that changes nothing but what is given."""
    changed = {"target": target or {}, "source": source or {}, "held_out": held_out or {}}
    changed[OWN_STATISTICS] = own or {}
    said = {"target": replace(SAID, **(before or {})), "source": KNOWN, "held_out": KNOWN}
    said[OWN_STATISTICS] = KNOWN
    after = {name: replace(answer, **changed[name]) for name, answer in said.items()}
    checks = gate.judge(Evidence(said, after, {"w": weights}, {"w": weights}, shift, shown))
    return {check.name for check in checks if check.passed is False}


def test_an_edit_that_changes_nothing_passes():
    assert judged() == set()


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({"target": {"finite": False}}, "finite"),
        ({"weights": math.inf}, "finite"),
        ({"weights": math.nan}, "finite"),
        ({"target": {"effective_classes": 3.9}}, "no collapse on the target"),
        ({"source": {"effective_classes": 1.0}}, "no collapse on the source"),
        ({"target": {"confidence": 0.49}}, "confidence"),
        ({"target": {"logit_rms": 10.1}}, "scale of the logits"),
        ({"target": {"logit_rms": 0.39}}, "scale of the logits"),
        ({"weights": 1.01}, "change of the weights"),
        ({"source": {"accuracy": 0.09}}, "accuracy on the source"),
        ({"own": {"accuracy": 0.54}}, "knowledge of the source"),
        ({"shift": 0.31}, "several classes"),
        ({"shift": 0.0, "shown": 0.26}, "several classes"),
        ({"held_out": {"accuracy": 0.59}}, "accuracy on the target"),
        ({"before": {"top_share": 0.95, "confidence": 0.9}}, "several classes"),
    ],
)
def test_each_harm_fails_its_own_check_and_no_other(changes, failed):
    assert judged(**changes) == {failed}


@pytest.mark.parametrize(
    "changes",
    [
        {"target": {"effective_classes": 4.0}},
        {"target": {"confidence": 0.51}},
        {"target": {"confidence": 1.0}},
        {"target": {"logit_rms": 9.9}},
        {"weights": 1.0},
        {"source": {"accuracy": 0.11}},
        {"own": {"accuracy": 0.56}},
        {"shift": 0.29},
        {"shift": 0.29, "shown": 0.24},
        {"shift": 0.0, "shown": 0.9, "before": {"confidence": 0.69}},
        {"shift": 0.9, "before": {"confidence": 0.69}},
        {"shift": 0.1, "before": {"top_share": 0.95, "confidence": 0.9}},
        {"held_out": {"accuracy": 0.6}},
        {"before": {"top_share": 0.95, "confidence": 0.6}},
    ],
)
def test_what_stays_within_its_bound_passes(changes):
    assert judged(**changes) == set()


def test_a_bound_of_none_leaves_its_check_away():
    off = Gate(**dict.fromkeys(set(Gate.__dataclass_fields__) - {"sure"}))
    harm = {"effective_classes": 1.0, "confidence": 0.0, "logit_rms": 99.0}
    assert (
        judged(
            off,
            target=harm,
            source={"accuracy": 0.0},
            held_out={"accuracy": 0.0},
            own={"accuracy": 0.0},
            weights=9.0,
            shift=9.0,
            shown=9.0,
        )
        == set()
    )
    assert judged(off, target={"finite": False}) == {"finite"}


def test_checks_whose_images_were_not_given_are_not_made_and_said_so():
    checks = {c.name: c for c in Gate().judge(Evidence({"target": SAID}, {"target": SAID}))}
    assert checks["accuracy on the source"].passed is None
    assert checks["accuracy on the target"].passed is None
    assert "held out" in checks["accuracy on the target"].says
    assert "no collapse on the source" not in checks


def test_a_bound_is_a_finite_number():
    with pytest.raises(EditingError, match="max_source_drop of the gate is nan"):
        Gate(max_source_drop=math.nan)


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_effective_classes_are_between_one_and_the_number_of_predicted_classes(classes):
    said = answers(torch.nn.functional.one_hot(torch.tensor(classes), 5).float())
    assert 1 - 1e-9 <= said.effective_classes <= len(set(classes)) + 1e-9
    assert said.top_share == pytest.approx(max(map(classes.count, classes)) / len(classes))


def test_answers_of_logits_by_hand():
    logits = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)]])
    said = answers(logits, torch.tensor([0, 0]))
    assert said.confidence == pytest.approx(0.75)
    assert said.effective_classes == pytest.approx(2.0)
    assert said.logit_rms == pytest.approx(math.log(3) / 2)
    assert said.accuracy == 0.5
    assert answers(logits, torch.tensor([-1, 0])).accuracy == 0.0
    assert answers(logits, torch.tensor([-1, -1])).accuracy is None
    assert not answers(logits * math.inf).finite


def test_changes_are_relative_to_the_size_of_the_tensor():
    before = {"a": torch.full((3,), 2.0), "b": torch.zeros(5), "n": torch.tensor(3), "same": torch.ones(2)}
    after = {
        "a": torch.full((3,), 3.0),
        "b": torch.full((5,), 1e-3),
        "n": torch.tensor(4),
        "same": torch.ones(2),
    }
    assert relative_changes(before, after) == pytest.approx({"a": 0.5, "b": 1.0})


def test_the_deep_shift_counts_deviations_of_the_last_batchnorm_layer_alone():
    base, edited = normed(), normed()
    edited[1].running_mean += 0.7 * (edited[1].running_var + edited[1].eps).sqrt()
    assert deep_shift(base, edited) == pytest.approx(0.7, rel=1e-5)
    below = torch.nn.Sequential(edited, torch.nn.BatchNorm1d(3)).eval()
    unmoved = torch.nn.Sequential(base, torch.nn.BatchNorm1d(3)).eval()
    assert deep_shift(unmoved, below) == 0
    assert deep_shift(mlp(), moved(mlp())) is None


def test_the_shift_of_the_target_is_that_of_its_statistics_less_what_the_draw_explains():
    model, shown = normed(), torch.randn(13, 2, 7, 7, generator=torch.Generator().manual_seed(2)) + 1
    norm = model[1]
    by_image = (model[0](shown).flatten(2).mean(2) - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    wanted = (by_image.mean(0) ** 2 - by_image.var(0) / 13).mean().sqrt()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert target_shift(model, shown, batch_size=4) == pytest.approx(float(wanted.detach()), rel=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(part.training for part in model.modules())
    assert target_shift(model, shown[:1]) is None
    assert target_shift(mlp(), torch.randn(3, 7)) is None


METHODS_OF_STATISTICS = [
    ("bn", {}),
    ("bn", {"source_count": 48}),
    ("bn-eb", {}),
    ("nf-bn", {"checkpoint": "statistics"}),
    ("finetune", {"statistics": "keep", "steps": 1}),
]
FEW_CLASSES = [
    (classes, *method)
    for classes in ((3,), (0, 1), (3, 8))
    for method in METHODS_OF_STATISTICS
    if len(classes) > 1 or method[0] != "finetune"  # which itself refuses labels of one class
]


def class_check(digits, method, options, domain, index):
    images, _ = digits.domain(domain, len(digits.data.val))
    shown = images[index]
    edit = adapt(digits.model, shown.images, method, options=options, labels=shown.labels)
    return next(check.passed for check in edit.history[0].checks if check.name == "several classes")


@pytest.mark.parametrize("domain", ["clean", "brightness:3"])
@pytest.mark.parametrize(("classes", "method", "options"), FEW_CLASSES)
def test_images_of_one_or_two_classes_are_refused_whatever_the_method_takes_of_them(
    digits, method, options, classes, domain
):
    index = torch.isin(digits.data.val.labels, torch.tensor(classes)).nonzero()[:, 0][: 24 * len(classes)]
    assert class_check(digits, method, options, domain, index) is False


@pytest.mark.parametrize("domain", ["clean", "brightness:3", "gaussian:3", "impulse:5"])
@pytest.mark.parametrize(("method", "options"), METHODS_OF_STATISTICS)
@pytest.mark.parametrize("count", [16, 64])
def test_images_of_all_classes_are_not_taken_for_few_classes(digits, method, options, count, domain):
    assert class_check(digits, method, options, domain, torch.arange(count))


def test_statistics_alone_cost_no_knowledge_and_noise_does(digits):
    target, _ = digits.domain("contrast:3")
    outcomes = {}
    for name, method in (("bn", "bn"), ("noise", Finetune(lr=0.1, steps=20))):
        edit = adapt(digits.model, target.images, method, labels=target.labels, source=digits.source)
        checks = {check.name: check.passed for check in edit.history[0].checks}
        outcomes[name] = checks["knowledge of the source"]
    assert outcomes == {"bn": True, "noise": False}


def test_the_gates_hits_are_counted_by_what_the_edit_really_did():
    outcomes = [
        Outcome(False, 0.8, 0.5),
        Outcome(True, 0.8, 0.6),
        Outcome(True, 0.5, 0.8),
        Outcome(False, 0.5, 0.7),
        Outcome(True, 0.5, 0.9),
        Outcome(True, 0.5, 0.505),
    ]
    score = gate_score(outcomes)
    assert (score.harmful, score.harmful_refused) == (2, 1)
    assert (score.good, score.good_refused) == (3, 1)
    assert (score.neutral, score.neutral_refused) == (1, 0)
    assert score.catches == 0.5 and score.false_alarms == pytest.approx(1 / 3)
    assert "refused 1 of 2 harmful edits, 1 of 3 good ones" in str(score)
    assert gate_score([]).catches is None
    with pytest.raises(EditingError, match="margin"):
        gate_score([], margin=-0.1)
