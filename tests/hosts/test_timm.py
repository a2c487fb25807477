"""timm: its registry, factory, parameter groups, schedulers and training script."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.optim._optim_factory import default_registry
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3

from nfopt import NfoptError, NFOptimizer, NfoptWarning, register_timm
from tests.hosts.models import IMAGES, INPUTS, RULE, TARGETS, backward, cnn, equal, mlp, steps, weights


@pytest.fixture(autouse=True)
def registered() -> None:
    register_timm()


def test_registering_twice_changes_nothing(caplog) -> None:
    create = default_registry.create_optimizer
    register_timm()
    assert default_registry.create_optimizer is create
    assert list_optimizers("nfopt") == ["nfopt"]
    assert not caplog.records


def test_the_factory_gives_what_the_constructor_gives() -> None:
    model, other = mlp(), mlp()
    optimizer = create_optimizer_v2(model, opt="nfopt", lr=1.0, total_steps=20, checkpoint=RULE)
    steps(model, optimizer, 4)
    reference = NFOptimizer(other, 20, weight_decay=0.0, checkpoint=RULE)
    steps(other, reference, 4)
    assert [atom.size for atom in optimizer.spec.groups.values()] == [7, 11]
    assert optimizer.spec == reference.spec
    assert equal(model, other)


def test_other_optimizers_of_the_registry_are_made_as_before() -> None:
    assert type(create_optimizer_v2(mlp(), opt="sgd", lr=0.1)) is torch.optim.SGD


def test_the_weight_decay_groups_of_timm_are_honoured() -> None:
    model = cnn()
    optimizer = create_optimizer_v2(
        model, opt="nfopt", lr=0.5, weight_decay=0.25, total_steps=None, checkpoint=RULE
    )
    found = {n: (g["weight_decay"], g["lr"]) for g in optimizer.param_groups for n in g["param_names"]}
    assert found == {n: (0.25 if p.ndim > 1 else 0.0, 0.5) for n, p in model.named_parameters()}
    steps(model, optimizer, 2, IMAGES)
    assert optimizer.spec.groups


def test_a_decayed_layer_learns_at_its_own_rate_under_timm_s_scheduler() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3, in_chans=3)
    optimizer = create_optimizer_v2(
        model, opt="nfopt", lr=1.0, weight_decay=0.1, layer_decay=0.5, checkpoint=RULE
    )
    scheduler, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=7, min_lr=0.0)
    scheduler.step(0)
    rates = {n: g["lr"] for g in optimizer.param_groups for n in g["param_names"]}
    assert rates["fc.weight"] == 1.0
    assert min(rates.values()) < 0.2
    images = torch.randn(26, 3, 32, 32)
    steps(model, optimizer, 2, images)
    scheduler.step(7)
    assert all(group["lr"] < 1e-6 for group in optimizer.param_groups)


def test_lookahead_wraps_it_and_resumes_to_the_same_bits() -> None:
    def build(seed: int):
        model = mlp(seed)
        return model, create_optimizer_v2(
            model, opt="lookahead_nfopt", lr=1.0, total_steps=20, checkpoint=RULE
        )

    model, optimizer = build(0)
    steps(model, optimizer, 7)
    state, saved = optimizer.state_dict(), {k: v.clone() for k, v in model.state_dict().items()}
    other, other_optimizer = build(1)
    other.load_state_dict(saved)
    other_optimizer.load_state_dict(state)
    for pair in ((model, optimizer), (other, other_optimizer)):
        steps(*pair, 7)
    assert equal(model, other)
    assert not equal(model, mlp())


def test_parameters_without_their_model_say_how_to_couple_them() -> None:
    model = mlp()
    optimizer = create_optimizer_v2(model.parameters(), opt="nfopt", lr=1.0, checkpoint=RULE)
    with pytest.warns(NfoptWarning, match="pass the model"):
        steps(model, optimizer, 1)


def test_parameters_with_their_model_beside_them_are_coupled() -> None:
    model = mlp()
    optimizer = create_optimizer_v2(model.parameters(), opt="nfopt", lr=1.0, model=model, checkpoint=RULE)
    steps(model, optimizer, 1)
    assert optimizer.spec.groups


def test_an_option_that_nfopt_does_not_have_is_named_with_those_that_it_has() -> None:
    with pytest.raises(NfoptError, match=r"no option foreach\. Its options: total_steps, lr"):
        create_optimizer_v2(mlp(), opt="nfopt", foreach=True)


def test_exponential_moving_averages_follow_the_training() -> None:
    model = cnn()
    optimizer = create_optimizer_v2(model, opt="nfopt", lr=1.0, total_steps=20, checkpoint=RULE)
    ema = ModelEmaV3(model, decay=0.5)  # before the first forward, as timm's script does
    expected = weights(model)
    for _ in range(3):
        steps(model, optimizer, 1, IMAGES)
        ema.update(model)
        expected = [0.5 * old + 0.5 * new for old, new in zip(expected, weights(model), strict=True)]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weights(ema.module), expected, strict=True))
    assert [atom.size for atom in optimizer.spec.groups.values()] == [5, 7]


SCRIPT = """
import sys, argparse, torch, timm
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.utils import ParseKwargs
parser = argparse.ArgumentParser()
parser.add_argument("--opt"), parser.add_argument("--lr", type=float)
parser.add_argument("--opt-kwargs", nargs="*", default={}, action=ParseKwargs)
args = parser.parse_args()
args.weight_decay, args.momentum, args.opt_eps, args.opt_betas = 2e-5, 0.9, None, None
torch.manual_seed(0)
model = timm.create_model("test_resnet", num_classes=3)
optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=args), **args.opt_kwargs)
for _ in range(2):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(torch.randn(2, 3, 32, 32)), torch.tensor([0, 1])).backward()
    optimizer.step()
print(len(optimizer.spec.groups), "groups", optimizer.schedule.total_steps, "steps")
"""


def test_a_training_script_of_timm_runs_unchanged_by_the_runner(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    arguments = ["--opt", "nfopt", "--lr", "1", "--opt-kwargs", "total_steps=9", "checkpoint=nominal"]
    command = [sys.executable, "-W", "error::UserWarning", "-m", "nfopt.optim.timm_registry", str(script)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    groups, _, total, _ = done.stdout.split()
    assert int(groups) > 3
    assert total == "9"


def test_the_runner_without_a_script_says_what_it_needs(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["nfopt.optim.timm_registry", "gone.py"])
    monkeypatch.delitem(sys.modules, "nfopt.optim.timm_registry")
    with pytest.raises(NfoptError, match="script to run"):
        runpy.run_module("nfopt.optim.timm_registry", run_name="__main__")


def test_the_gradients_of_a_micro_batch_loop_are_summed_as_timm_s_script_sums_them() -> None:
    whole, parts = mlp(), mlp()
    optimizers = [
        create_optimizer_v2(model, opt="nfopt", lr=1.0, total_steps=9, checkpoint=RULE)
        for model in (whole, parts)
    ]
    backward(whole)
    for inputs, targets in zip(INPUTS.split(13), TARGETS.split(13), strict=True):
        (torch.nn.functional.cross_entropy(parts(inputs), targets) / 2).backward()
    for optimizer in optimizers:
        optimizer.step()
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(weights(whole), weights(parts), strict=True))
