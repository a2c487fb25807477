"""Hugging Face's Trainer; skips itself where transformers is not installed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from nfopt import NFOptimizer
from tests.hosts.models import INPUTS, RULE, TARGETS, equal, mlp

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::Warning:transformers", "ignore::Warning:torch")
STEPS = 6


class Classifier(nn.Module):
    """The model as Trainer wants it: inputs by keyword, the loss in what comes out."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.body = mlp(seed)

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.body(inputs)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def trainer(model: nn.Module, folder: Path, **options: Any):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=26,
        lr_scheduler_type="constant",
        learning_rate=1.0,
        max_grad_norm=0.0,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_steps=3,
        logging_strategy="no",
    )
    rows = [{"inputs": x, "labels": y} for x, y in zip(INPUTS, TARGETS, strict=True)]
    return transformers.Trainer(model=model, args=arguments, train_dataset=rows, **options)


def bare(model: Classifier) -> Classifier:
    optimizer = NFOptimizer(model, STEPS, checkpoint=RULE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(INPUTS, TARGETS)["loss"].backward()
        optimizer.step()
    return model


def close(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.allclose(x, y, atol=1e-5) for x, y in pairs)


def test_given_as_class_and_arguments_it_trains_as_in_a_bare_loop(tmp_path: Path) -> None:
    model = Classifier()
    options = {"model": model, "total_steps": STEPS, "checkpoint": RULE}
    job = trainer(model, tmp_path, optimizer_cls_and_kwargs=(NFOptimizer, options))
    job.train()
    assert [atom.size for atom in job.optimizer.optimizer.spec.groups.values()] == [7, 11]
    assert close(model, bare(Classifier()))


def test_given_as_an_instance_with_its_scheduler_it_trains_as_in_a_bare_loop(tmp_path: Path) -> None:
    model = Classifier()
    optimizer = NFOptimizer(model, STEPS, checkpoint=RULE)
    trainer(model, tmp_path, optimizers=(optimizer, LambdaLR(optimizer, lambda step: 1.0))).train()
    assert optimizer.param_groups[0]["steps_taken"] == STEPS
    assert close(model, bare(Classifier()))


def test_a_trainer_s_checkpoint_resumes_to_the_same_bits(tmp_path: Path) -> None:
    straight, resumed = Classifier(), Classifier(1)

    def job(model: nn.Module):
        options = {"model": model, "total_steps": STEPS, "checkpoint": RULE}
        return trainer(model, tmp_path, optimizer_cls_and_kwargs=(NFOptimizer, options))

    job(straight).train()
    job(resumed).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert equal(straight, resumed)
