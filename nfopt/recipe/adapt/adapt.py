"""Job `adapt`: a network trained from nothing, shown corrupted images, and edited by several methods."""

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field, JsonValue
from safetensors.torch import save_file
from torch import nn

from nfopt.atomic import replacing
from nfopt.data import ImageData, Split
from nfopt.editing import Domain, Gate, Outcome, gate_score
from nfopt.errors import RecipeError
from nfopt.metrics import evaluate
from nfopt.progress import Progress
from nfopt.recipe.adapt.options import DomainName, GateOptions, Steps, edit_in_steps, needs_labels, touched
from nfopt.recipe.adapt.report import plot_domains, table_of_domains
from nfopt.recipe.inputs import DataOptions, DeviceName, ModelOptions, device_of
from nfopt.recipe.job import JobResult, Recipe, RunContext, job
from nfopt.recipe.optimizers import OptimizerChoice
from nfopt.recipe.strict import Count, Seeds
from nfopt.seeds import derive_seed
from nfopt.training import TrainingConfig, train


class AdaptRecipe(Recipe):
    """The keys of `kind: adapt`.

    Attributes:
        data: the source domain; images are corrupted first and standardised then, by the source's mean.
        model: the network, initialised from each seed.
        optimizer: trains it on the source.
        total_steps: optimizer steps of that training.
        batch_size: images per step.
        domains: corruptions with severities, as "contrast:3" or "rotation:2+gaussian:5".
        methods: by key, in the order of the table: the steps of an edit, one after the other.
        target_images: images of each domain that the methods see, from the validation images.
        shots: labels per class of those images for steps that need labels.
        kept_source: source images that methods and gate may use, from the other validation images.
        gate: bounds of the gate.
        seeds: a network, corruptions and edits of each.
        device: "auto", "cpu", "cuda" or "cuda:0".
    """

    data: DataOptions
    model: ModelOptions
    optimizer: OptimizerChoice = Field(default={"name": "adamw", "lr": 1e-2}, validate_default=True)  # pyright: ignore[reportAssignmentType]
    total_steps: Count = 300
    batch_size: Count = 64
    domains: Annotated[tuple[DomainName, ...], Field(min_length=1)]
    methods: Annotated[dict[str, Steps], Field(min_length=1)]
    target_images: Count = 64
    shots: Count = 5
    kept_source: Count = 128
    gate: GateOptions = Gate()
    seeds: Seeds = (0, 1, 2)
    device: DeviceName = "auto"


def plan_adapt(recipe: AdaptRecipe) -> list[str]:
    """Return what a run would do, with the tensors that each step may change."""
    data = _data(recipe)
    model = recipe.model.build(data, recipe.seeds[0]).eval()
    lines = [
        f"train {recipe.model.name} on {recipe.data.name}, {recipe.total_steps} steps, "
        f"seeds {', '.join(map(str, recipe.seeds))}",
        f"{len(recipe.domains)} domains: {', '.join(recipe.domains)}",
        f"in each: {recipe.target_images} target images to adapt to, {len(data.test)} others to test on",
    ]
    for key, steps in recipe.methods.items():
        for number, step in enumerate(steps, 1):
            shots = f", {recipe.shots} labels per class" if needs_labels([step]) else ""
            what = touched(model, step, data.val.images[:2])
            lines.append(f"  {key}, step {number}: {step.method}{shots}; {what}")
    count = len(recipe.seeds) * len(recipe.domains) * len(recipe.methods)
    lines.append(f"{count} edits, each judged by the gate and tested whatever it says")
    return lines


@job("adapt", AdaptRecipe, plan=plan_adapt)
def run_adapt(recipe: AdaptRecipe, context: RunContext) -> JobResult:
    """Edit a trained network for corrupted images by several methods, with a gate, and test them."""
    data = _data(recipe)
    context.note_data(data.name, data.content_hash)
    timing: dict[str, JsonValue] = {}
    rows: list[dict[str, Any]] = []
    total = len(recipe.seeds) * (1 + len(recipe.domains) * len(recipe.methods))
    for number, seed in enumerate(recipe.seeds):
        done = number * total // len(recipe.seeds)
        context.progress(Progress("networks and edits", done, total, f"seed {seed}"))
        compute: Any = partial(_edits, recipe, data, seed, context, timing, done, total)
        rows += context.piece(f"edits-seed{seed}", compute)
    context.progress(Progress("networks and edits", total, total))
    outcomes = [Outcome(row["accepted"], row["before"]["target"], row["after"]["target"]) for row in rows]
    score = gate_score(outcomes)
    title = f"{recipe.model.name} on {data.name}, {recipe.target_images} target images: test accuracy (%)"
    figure = context.folder / "accuracy.png"
    plot_domains(figure, rows, title)
    table = table_of_domains(rows, title, str(score))
    results: dict[str, JsonValue] = {"edits": rows, "gate": asdict(score)}  # pyright: ignore[reportAssignmentType]
    return JobResult(
        results=results,
        tables=(table,),
        timing=timing,
        files=(figure, context.folder / f"model-seed{recipe.seeds[0]}.safetensors"),
    )


def _data(recipe: AdaptRecipe) -> ImageData:
    """Return the images in [0, 1]: a corruption is what happens before standardising."""
    data = recipe.data.model_copy(update={"standardize": False}).load()
    needed = recipe.target_images + recipe.kept_source
    if len(data.val) < needed:
        raise RecipeError(
            f"{data.name} has {len(data.val)} validation images; target_images and kept_source need {needed} "
            "of them. Give smaller numbers, or a larger data.n_val."
        )
    clamped = [replace(s, images=s.images.clamp(0, 1)) for s in (data.train, data.val, data.test)]
    return ImageData(data.name, *clamped, classes=data.classes)


def _edits(
    recipe: AdaptRecipe,
    data: ImageData,
    seed: int,
    context: RunContext,
    timing: dict[str, JsonValue],
    done: int,
    total: int,
) -> list[dict[str, Any]]:
    """Train the network of a seed and return a row for each edit of it."""
    device = device_of(recipe.device)
    mean = data.train.images.mean((0, 2, 3), keepdim=True)
    deviation = data.train.images.std((0, 2, 3), keepdim=True).clamp_min(1e-3)

    def prepared(split: Split) -> Split:
        return Split((split.images - mean) / deviation, split.labels).to(device)

    model = _trained(recipe, data, prepared, seed, context).to(device).eval()
    order = torch.randperm(len(data.val), generator=torch.Generator().manual_seed(derive_seed(seed, "adapt")))
    source = prepared(data.val[order[recipe.target_images :][: recipe.kept_source]])
    clean = prepared(data.test)
    folder = context.folder / "edits"
    rows = []
    for name in recipe.domains:
        generator = torch.Generator().manual_seed(derive_seed(seed, "domain", name))
        domain = Domain.parse(name)
        seen = data.val[order[: recipe.target_images]]
        target = prepared(replace(seen, images=domain(seen.images, generator)))
        test = prepared(replace(data.test, images=domain(data.test.images, generator)))
        labels = few_labels(target.labels, recipe.shots)
        before = _accuracies(model, test, clean)
        for key, steps in recipe.methods.items():
            began = time.perf_counter()
            edit = edit_in_steps(
                model,
                steps,
                target.images,
                labels=labels if needs_labels(steps) else None,
                source=source,
                held_out=None,
                gate=recipe.gate,
                seed=seed,
            )
            timing[f"{key} on {name}, seed {seed}: seconds"] = time.perf_counter() - began
            edit.apply(model, force=True)
            after = _accuracies(model, test, clean)
            edit.revert(model)
            if seed == recipe.seeds[0]:
                edit.save(folder / f"{key}-{name.replace(':', '').replace('+', '-')}.safetensors")
            rows.append(
                {
                    "seed": seed,
                    "domain": name,
                    "method": key,
                    "before": before,
                    "after": after,
                    "accepted": edit.accepted,
                    "reasons": list(edit.reasons),
                    "changed_tensors": len(edit.changed),
                }
            )
            context.progress(Progress("networks and edits", done + 1 + len(rows), total, f"{key} on {name}"))
    return rows


def _trained(
    recipe: AdaptRecipe, data: ImageData, prepared: Any, seed: int, context: RunContext
) -> nn.Module:
    """Return the network of a seed, trained on the source; that of the first seed is saved, for its edits."""
    splits = [prepared(split) for split in (data.train, data.val, data.test)]
    standard = ImageData(data.name, *splits, classes=data.classes)
    model = recipe.model.build(data, seed).to(device_of(recipe.device))
    optimization = recipe.optimizer.build(model, (splits[0].images[:2],), recipe.total_steps)
    config = TrainingConfig(
        recipe.total_steps, min(recipe.batch_size, len(data.train)), recipe.total_steps, seed
    )
    curve = train(
        model,
        standard,
        optimization,
        config,
        state_file=context.state_file(f"train-seed{seed}"),
        progress=context.progress,
        task=f"train on {data.name}, seed {seed}",
    )
    if curve.diverged_at is not None:
        raise RecipeError(f"the training of seed {seed} diverged; give optimizer a smaller lr.")
    if seed == recipe.seeds[0]:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        with replacing(context.folder / f"model-seed{seed}.safetensors") as partial:
            save_file(state, partial)
    return model


def few_labels(labels: torch.Tensor, shots: int) -> torch.Tensor:
    """Return the labels of the first `shots` images of each class, -1 for the others."""
    few = torch.full_like(labels, -1)
    for label in labels.unique():
        chosen = torch.nonzero(labels == label).flatten()[:shots]
        few[chosen] = label
    return few


def _accuracies(model: nn.Module, test: Split, clean: Split) -> Mapping[str, float]:
    scores = {"target": test, "source": clean}
    return {name: evaluate(model, s.images, s.labels).accuracy for name, s in scores.items()}
