import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from nfopt.data import Split
from nfopt.editing import METHODS, Edit, Gate, Method, Task, Tent, adapt, compose, edit_method
from nfopt.errors import EditingError, UnknownNameError
from nfopt.metrics import evaluate
from tests.editing.nets import bits_of, mlp, normed


def accuracy(model, split):
    return evaluate(model, split.images, split.labels).accuracy


def images(count=11, seed=3):
    return torch.randn(count, 2, 7, 7, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", ["bn", "tent", "shot-im", "eata"])
def test_under_low_contrast_every_method_without_labels_gains_much(digits, method):
    target, test = digits.domain("contrast:3")
    before, start = accuracy(digits.model, test), bits_of(digits.model)
    edit = adapt(digits.model, target.images, method)
    assert bits_of(digits.model) == start
    edit.apply(digits.model)
    assert accuracy(digits.model, test) > before + 0.3
    edit.revert(digits.model)
    assert bits_of(digits.model) == start


def test_few_labels_bring_more_than_statistics(digits):
    target, test = digits.domain("pixelate:5")
    gained = {}
    for method, labels in (("bn", None), ("finetune", target.labels)):
        model = copy.deepcopy(digits.model)
        adapt(model, target.images, method, labels=labels).apply(model)
        gained[method] = accuracy(model, test)
    assert gained["finetune"] > gained["bn"] > accuracy(digits.model, test)


@dataclass(frozen=True)
class AlwaysTheFirst(Method):
    """What entropy alone is least at: one class for every image."""

    def fit(self, model: nn.Module, task: Task) -> Mapping[str, Any]:
        with torch.no_grad():
            list(model.parameters())[-1][0] += 100
        return {}


def test_the_gate_refuses_a_collapse_and_says_so(digits):
    target, test = digits.domain("gaussian:5")
    edit = adapt(digits.model, target.images, AlwaysTheFirst())
    assert any("spread over 1.0 classes" in reason for reason in edit.reasons)
    before = accuracy(digits.model, test)
    with pytest.raises(EditingError, match="refused"):
        edit.apply(digits.model)
    edit.apply(digits.model, force=True)
    assert accuracy(digits.model, test) < before - 0.5
    assert adapt(digits.model, target.images, AlwaysTheFirst(), gate=None).accepted


def test_the_gate_refuses_what_entropy_over_all_weights_and_large_steps_come_to(digits):
    target, _ = digits.domain("gaussian:5")
    edit = adapt(digits.model, target.images, Tent(lr=0.1, steps=15, include=("*",)), source=digits.source)
    assert not edit.accepted


def test_images_of_one_class_only_are_refused_where_the_model_knows_them(digits):
    clean, _ = digits.domain("clean", 360)
    zeros = clean.images[clean.labels == 0]
    edit = adapt(digits.model, zeros, "bn")
    assert any("images of one class" in reason for reason in edit.reasons)


def test_held_out_labels_decide_and_are_not_trained_on(digits):
    target, test = digits.domain("contrast:3")
    wrong = Split(test.images, (test.labels + 1) % 10)
    edit = adapt(digits.model, target.images, "bn", held_out=wrong)
    plain = adapt(digits.model, target.images, "bn")
    assert edit.result == plain.result
    assert "held_out_accuracy" in edit.history[0].before
    assert adapt(digits.model, target.images, "bn", labels=target.labels).accepted


def test_labels_that_were_trained_on_do_not_judge_the_edit(digits):
    target, _ = digits.domain("contrast:3")
    (step,) = adapt(digits.model, target.images, "finetune", labels=target.labels).history
    outcome = {check.name: check.passed for check in step.checks}
    assert outcome["accuracy on the target"] is None
    (step,) = adapt(digits.model, target.images, "bn", labels=target.labels).history
    assert {check.name: check.passed for check in step.checks}["accuracy on the target"] is True


def test_the_history_says_how_the_edit_was_made_and_comes_back_from_the_file(digits, tmp_path):
    target, _ = digits.domain("contrast:3")
    edit = adapt(digits.model, target.images, "tent", options={"steps": 3}, source=digits.source, seed=5)
    (step,) = edit.history
    assert step.method == "tent" and step.options["steps"] == 3 and step.options["seed"] == 5
    assert step.images == 64 and set(step.data) == {"target", "source"}
    assert step.base == edit.base_digest and step.result == edit.result_digest
    assert set(step.changes) == set(edit.changed)
    edit.save(tmp_path / "edit.safetensors")
    assert Edit.load(tmp_path / "edit.safetensors") == edit


def test_edits_of_two_methods_compose_to_one(digits):
    target, _ = digits.domain("contrast:3")
    model = copy.deepcopy(digits.model)
    first = adapt(model, target.images, "bn")
    first.apply(model)
    second = adapt(model, target.images, "finetune", labels=target.labels, options={"steps": 3})
    second.apply(model)
    whole = compose(first, second)
    other = copy.deepcopy(digits.model)
    whole.apply(other)
    assert bits_of(other) == bits_of(model) and whole.method == "bn + finetune"
    whole.revert(other)
    assert bits_of(other) == bits_of(digits.model)


@pytest.mark.parametrize("method", ["tent", "shot-im", "eata"])
def test_the_same_seed_gives_the_same_edit_and_the_global_random_state_stays(method):
    options = {"steps": 5, "batch_size": 4} | ({"entropy_share": 1.0} if method == "eata" else {})
    state = torch.random.get_rng_state()
    first = adapt(normed(), images(), method, options=options, gate=None)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(99)
    assert adapt(normed(), images(), method, options=options, gate=None) == first
    assert adapt(normed(), images(), method, options=options, gate=None, seed=1).result != first.result


def test_mode_gradients_and_flags_of_the_model_stay_as_they_were():
    model = normed().train()
    model(images()).sum().backward()
    model[0].weight.requires_grad_(False)
    before = bits_of(model)
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    adapt(model, images(), "shot-im", gate=None)
    assert model.training and not model[0].weight.requires_grad and model[1].weight.requires_grad
    assert bits_of(model) == before
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)


def test_methods_of_ones_own_take_part():
    @dataclass(frozen=True)
    class Halve(Method):
        share: float = 0.5

        def fit(self, model: nn.Module, task: Task) -> Mapping[str, Any]:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(self.share)
            return {}

    edit = adapt(mlp(), torch.ones(2, 7), Halve())
    model = mlp()
    edit.apply(model)
    assert torch.equal(model[1].weight, mlp()[1].weight / 2)
    with pytest.raises(UnknownNameError, match="bn, bn-eb, eata"):
        adapt(mlp(), torch.ones(2, 7), "bm")
    with pytest.raises(Exception, match="registered already"):
        edit_method("bn")(Halve)
    assert "halve" not in METHODS


LABELS = torch.arange(11) % 3


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: adapt(normed(), torch.zeros(0, 2, 7, 7)), "no target images"),
        (lambda: adapt(normed(), [images()]), "give the images as one tensor"),
        (lambda: adapt(normed(), images().byte()), "floating point"),
        (lambda: adapt(normed(), images() * torch.nan), "not finite"),
        (lambda: adapt(normed(), torch.zeros(5, 2, 9, 9)), "does not run on target images of 2x9x9"),
        (lambda: adapt(normed(), torch.zeros(5, 3, 7, 7)), "does not run on target images of 3x7x7"),
        (lambda: adapt(normed(), images().double()), "does not run on target images"),
        (
            lambda: adapt(normed(), images(), source=Split(torch.zeros(5, 2, 9, 9), LABELS[:5])),
            r"source images have shape \[2, 9, 9\]",
        ),
        (lambda: adapt(mlp(), torch.zeros(5, 7), "bn"), "has no BatchNorm.*shot-im, finetune"),
        (lambda: adapt(mlp(), torch.zeros(5, 7), "tent"), "has no BatchNorm"),
        (lambda: adapt(normed(), images(), "finetune"), "needs labels"),
        (lambda: adapt(normed(), images(), labels=LABELS + 1), "from 1 to 3, out of range: the model has 3"),
        (lambda: adapt(normed(), images(), labels=LABELS - 2), "from -2 to 0, out of range"),
        (lambda: adapt(normed(), images(), labels=LABELS[:5]), "there are 5 for 11 images"),
        (lambda: adapt(normed(), images(), labels=LABELS.float()), "one whole number per image"),
        (
            lambda: adapt(normed(), images(), "finetune", labels=torch.ones(11, dtype=torch.long)),
            r"one class only \(1\)",
        ),
        (
            lambda: adapt(normed(), images(), "finetune", labels=-torch.ones(11, dtype=torch.long)),
            "no class at all",
        ),
        (lambda: adapt(normed(), images(), held_out=Split(images(), LABELS + 7)), "labels of held_out go"),
        (lambda: adapt(nn.Flatten(), images()), "no parameters"),
        (lambda: adapt(nn.Conv2d(2, 5, 3), images(), "shot-im"), "a classifier answers"),
        (lambda: adapt(normed(), images(), Tent(), options={"lr": 1.0}), "has its own already"),
        (lambda: adapt(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(7), nn.Linear(7, 3)).eval(),
                       torch.zeros(1, 7)), "cannot work with these 1 target images"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_a_reason(call, says):
    with pytest.raises(EditingError, match=says):
        call()


def test_an_unknown_option_says_which_one_was_meant():
    with pytest.raises(UnknownNameError, match="Did you mean 'steps'"):
        adapt(normed(), images(), "tent", options={"stpes": 3})


def test_the_gate_of_the_call_is_the_one_that_judges():
    strict = Gate(max_weight_change=0.0)
    edit = adapt(normed(), images(), "shot-im", gate=strict)
    assert any("largest change of a weight" in reason for reason in edit.reasons)
