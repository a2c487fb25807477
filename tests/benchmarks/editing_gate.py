"""How often the gate refuses harm, and how often it refuses good: usual edits and sabotaged ones, on digits.

python -m tests.benchmarks.editing_gate
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nfopt.data import Split, load_data
from nfopt.editing import Domain, Finetune, Method, Outcome, ShotIM, Task, Tent, adapt, gate_score
from nfopt.metrics import evaluate
from nfopt.models import build_model

DOMAINS = ("contrast:3", "contrast:5", "defocus:5", "pixelate:4", "gaussian:5", "rotation:3", "clean")


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
    sorted_by_class = target[target.labels.argsort()[:64]]
    few = target[torch.arange(64)] if len(target) > 64 else target
    return {
        "bn": (few, "bn", None),
        "tent": (few, "tent", None),
        "shot-im": (few, "shot-im", None),
        "eata": (few, "eata", None),
        "finetune": (few, "finetune", few.labels),
        "bn, 4 images": (target[torch.arange(4)], "bn", None),
        "bn, class-sorted": (sorted_by_class, "bn", None),
        "shot-im, class-sorted": (sorted_by_class, ShotIM(steps=60), None),
        "tent, large steps": (few, Tent(lr=0.05, steps=60, include=("*",)), None),
        "finetune, shifted labels": (few, Finetune(), (few.labels + 1) % 10),
        "noise 0.3": (few, Shaken(0.3), None),
        "noise 0.8": (few, Shaken(0.8), None),
        "noise 1.5": (few, Shaken(1.5), None),
    }


def trained(seed: int, data: Any, mean: torch.Tensor, deviation: torch.Tensor) -> nn.Module:
    model = build_model("cnn", (1, 8, 8), 10, seed=seed, options={"channels": (8, 16, 16)}).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(150):
        batch = data.train[torch.randint(0, len(data.train), (64,), generator=generator)]
        loss = nn.functional.cross_entropy(model((batch.images - mean) / deviation), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    data = load_data("digits", standardize=False)
    mean, deviation = data.train.images.mean(), data.train.images.std()
    outcomes: dict[str, dict[str, list[Outcome]]] = defaultdict(lambda: defaultdict(list))
    for seed in range(arguments.seeds):
        model = trained(seed, data, mean, deviation)
        source = Split((data.val.images[232:] - mean) / deviation, data.val.labels[232:])
        for name in DOMAINS:
            generator, domain = torch.Generator().manual_seed(seed), Domain.parse(name)
            seen, test = (
                Split((domain(split.images, generator) - mean) / deviation, split.labels)
                for split in (data.val[torch.arange(232)], data.test)
            )
            before = evaluate(model, test.images, test.labels).accuracy
            for kind, (target, method, labels) in edits(seen).items():
                for setting, kept in (("target only", None), ("source kept", source)):
                    edit = adapt(model, target.images, method, labels=labels, source=kept)
                    edit.apply(model, force=True)
                    after = evaluate(model, test.images, test.labels).accuracy
                    edit.revert(model)
                    outcomes[setting][kind].append(Outcome.of(edit, before, after))
    for setting, kinds in outcomes.items():
        print(f"\n{setting}, {arguments.seeds} seeds, {len(DOMAINS)} domains; margin 1 point")
        for kind, found in kinds.items():
            print(f"  {kind:26} {gate_score(found)}")
        print(f"  {'all':26} {gate_score(o for found in kinds.values() for o in found)}")


if __name__ == "__main__":
    main()
