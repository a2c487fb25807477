"""How often the gate refuses harm, and how often it refuses good: usual edits and sabotaged ones.

Bounds were chosen on digits, on the domains and nets of `--side tune`; the hit rate is measured on `--side
test`, other nets and other domains, and on other pictures by `--data`. Then methods of statistics on images
of one, two and all classes, by the gate with and without its bound on what the images alone would move.

python -m tests.benchmarks.editing_gate
NFOPT_DATA=... python -m tests.benchmarks.editing_gate --data fashion_mnist
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nfopt.data import ImageData, Split, load_data
from nfopt.editing import (
    BatchNormStatistics,
    Domain,
    EmpiricalBayesStatistics,
    Evidence,
    Finetune,
    Gate,
    LearnedStatistics,
    Method,
    Outcome,
    ShotIM,
    Task,
    Tent,
    gate_score,
)
from nfopt.editing.adapt import adapt
from nfopt.editing.evidence import Answers, gather
from nfopt.editing.model_state import state_of
from nfopt.meta.editor_nets import stacked_state, train_side_by_side
from nfopt.metrics import evaluate
from nfopt.models import build_model

DOMAINS = {
    "tune": ("contrast:3", "contrast:4", "defocus:4", "gaussian:5", "rotation:3", "clean"),
    "test": ("contrast:5", "brightness:4", "defocus:5", "pixelate:4", "motion:3", "impulse:5", "rotation:2"),
}
FIRST_SEED = {"tune": 0, "test": 1000}
KEPT_SOURCE, TEST_IMAGES = 128, 1000
"""The last validation images are the kept source images, the first ones are seen through the domains."""


@dataclass(frozen=True)
class Pictures:
    """A data set at a size that small nets learn in seconds: its options, their channels, their steps."""

    options: Mapping[str, Any]
    channels: tuple[int, ...]
    total_steps: int

    def net(self, data: ImageData, seed: int = 0) -> nn.Module:
        """Return a fresh net with BatchNorm."""
        options = {"channels": self.channels}
        return build_model("cnn", data.in_shape, data.classes, seed=seed, options=options).eval()


LARGER = {"n_train": 6000, "n_val": 600}
PICTURES = {
    "digits": Pictures({}, (8, 16, 16), 150),
    "mnist": Pictures({"resize": 14, **LARGER}, (12, 24, 32), 250),
    "fashion_mnist": Pictures({"resize": 14, **LARGER}, (12, 24, 32), 250),
    "cifar10": Pictures({"resize": 16, **LARGER}, (12, 24, 32), 500),
}


@dataclass(frozen=True)
class Shaken(Method):
    """Adds noise of a share of each weight's RMS: harm that looks like nothing in particular."""

    share: float

    def fit(self, model: nn.Module, task: Task) -> Mapping[str, Any]:
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=task.generator)
                parameter += self.share * parameter.square().mean().sqrt() * noise
        return {}


def edits(target: Split) -> dict[str, tuple[Split, str | Method, torch.Tensor | None]]:
    """Return target images, method and labels of each edit by kind."""
    sorted_by_class = target[target.labels.argsort(stable=True)[:24]]
    few = target[torch.arange(64)]
    return {
        "bn": (few, "bn", None),
        "tent": (few, "tent", None),
        "shot-im": (few, "shot-im", None),
        "eata": (few, "eata", None),
        "nf": (few, "nf", None),
        "finetune": (few, "finetune", few.labels),
        "bn, 4 images": (target[torch.arange(4)], "bn", None),
        "bn, one class": (sorted_by_class, "bn", None),
        "shot-im, one class": (sorted_by_class, ShotIM(steps=60), None),
        "tent, large steps": (few, Tent(lr=0.05, steps=60, include=("*",)), None),
        "finetune, shifted labels": (few, Finetune(), (few.labels + 1) % 10),
        "noise 0.3": (few, Shaken(0.3), None),
        "noise 0.8": (few, Shaken(0.8), None),
        "noise 1.5": (few, Shaken(1.5), None),
    }


STATISTICS = {
    "bn": BatchNormStatistics(),
    "blended": BatchNormStatistics(source_count=16),
    "bn-eb": EmpiricalBayesStatistics(),
    "nf-bn": LearnedStatistics("statistics"),
}


def edits_by_classes(target: Split) -> dict[str, tuple[Split, str | Method, torch.Tensor | None]]:
    """Return the same for methods of statistics, on images of one, two and all classes."""
    shown = {
        "one class": target[(target.labels == 3).nonzero()[:24, 0]],
        "two classes": target[((target.labels == 3) | (target.labels == 8)).nonzero()[:32, 0]],
        "all classes, 16": target[torch.arange(16)],
    }
    return {
        f"{name}, {classes}": (images, method, None)
        for classes, images in shown.items()
        for name, method in STATISTICS.items()
    }


def nets(pictures: Pictures, data: ImageData, seeds: list[int], train: Split) -> list[nn.Module]:
    """Return nets with BatchNorm, trained side by side."""
    models = [pictures.net(data, seed) for seed in seeds]
    how = {"total_steps": pictures.total_steps, "batch_size": 64, "lr": 1e-2, "seed": seeds[0]}
    tensors = train_side_by_side(models[0], stacked_state(models), train, **how)
    for index, model in enumerate(models):
        model.load_state_dict({name: tensor[index] for name, tensor in tensors.items()}, strict=False)
        model.requires_grad_(False)
    return models


def evidence_rows(name: str, side: str, count: int) -> Iterator[dict[str, Any]]:
    """Yield for every edit its evidence, with kept source images, and the truth about it."""
    pictures = PICTURES[name]
    data = load_data(name, standardize=False, **pictures.options)
    colours = (0, 2, 3)
    mean, deviation = (
        found(data.train.images, dim=colours, keepdim=True) for found in (torch.mean, torch.std)
    )

    def prepared(split: Split) -> Split:
        return replace(split, images=(split.images - mean) / deviation)

    unseen = len(data.val) - KEPT_SOURCE
    source = prepared(data.val[torch.arange(unseen, len(data.val))])
    judges = data.test[torch.arange(min(TEST_IMAGES, len(data.test)))]
    seeds = [FIRST_SEED[side] + index for index in range(count)]
    for seed, model in zip(seeds, nets(pictures, data, seeds, prepared(data.train)), strict=True):
        for domain_name in DOMAINS[side]:
            generator, domain = torch.Generator().manual_seed(seed), Domain.parse(domain_name)
            seen, test = (
                prepared(replace(split, images=domain(split.images.clamp(0, 1), generator)))
                for split in (data.val[torch.arange(unseen)], judges)
            )
            before = evaluate(model, test.images, test.labels).accuracy
            base = {key: tensor.clone() for key, tensor in state_of(model).items()}
            groups = {"edits": edits(seen), "by classes": edits_by_classes(seen)}
            kinds = [
                (group, kind, *given) for group, every in groups.items() for kind, given in every.items()
            ]
            for group, kind, target, method, labels in kinds:
                edit = adapt(model, target.images, method, labels=labels, source=source, gate=None)
                edited = pictures.net(data)
                edited.load_state_dict(edit.edited_state(base))
                sets = {"target": (target.images, None), "source": (source.images, source.labels)}
                evidence = gather(model, edited, sets, base, state_of(edited))
                after = evaluate(edited, test.images, test.labels).accuracy
                truth = {"seed": seed, "domain": domain_name, "group": group, "kind": kind}
                truth |= {"before": before, "after": after}
                yield {**truth, "evidence": asdict(evidence)}


def outcome(row: dict[str, Any], gate: Gate, *, source_kept: bool) -> Outcome:
    """Return what a gate says of an edit, with or without kept source images."""
    found = row["evidence"]
    before, after = (
        {name: Answers(**said) for name, said in found[when].items() if source_kept or name == "target"}
        for when in ("before", "after")
    )
    moved = {name: found[name] for name in ("changes", "weight_changes", "deep_shift", "target_shift")}
    return Outcome(gate.accepts(Evidence(before, after, **moved)), row["before"], row["after"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", choices=tuple(PICTURES), default="digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--side", choices=tuple(DOMAINS), default="test")
    parser.add_argument("--rows", type=Path, help="write the evidence of every edit as JSON")
    arguments = parser.parse_args()
    rows = list(evidence_rows(arguments.data, arguments.side, arguments.seeds))
    if arguments.rows:
        arguments.rows.write_text(json.dumps(rows))
    usual, by_classes = ([row for row in rows if row["group"] == group] for group in ("edits", "by classes"))
    without = replace(Gate(), max_target_shift=None)
    for setting, some, gate, kept in (
        ("target only", usual, Gate(), False),
        ("source kept", usual, Gate(), True),
        ("target only, without max_target_shift", usual, without, False),
        ("source kept, without max_target_shift", usual, without, True),
        ("by classes, target only", by_classes, Gate(), False),
        ("by classes, target only, without max_target_shift", by_classes, without, False),
    ):
        print(f"\n{setting}, {arguments.seeds} nets, {len(DOMAINS[arguments.side])} domains; margin 1 point")
        for kind in dict.fromkeys(row["kind"] for row in some):
            mine = [outcome(row, gate, source_kept=kept) for row in some if row["kind"] == kind]
            print(f"  {kind:26} {gate_score(mine)}")
        print(f"  {'all':26} {gate_score(outcome(row, gate, source_kept=kept) for row in some)}")


if __name__ == "__main__":
    main()
