"""Job `train_mask`: teach the mask network by imitation, then search its few free numbers by trained loss."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator
from torch import Tensor

from nfopt.checkpoints import load_checkpoint, save_checkpoint
from nfopt.errors import NfoptError
from nfopt.meta.mask_imitation import ImitationConfig, Ticket, imitate, imitation_loss
from nfopt.meta.mask_search import SearchConfig, numbers_of, search, trained_losses, with_numbers
from nfopt.meta.mask_tasks import MaskTask, surviving_rounds
from nfopt.meta.sources import require_trainable
from nfopt.progress import Progress
from nfopt.pruning.neural import (
    TENSOR_INPUTS,
    MaskNetwork,
    MaskNetworkConfig,
    network_checkpoint,
    read_model,
    read_network,
)
from nfopt.pruning.neural.mask_network import CHECKPOINT_KIND
from nfopt.recipe.job import JobResult, Recipe, RunContext, Table, job
from nfopt.recipe.prune.options import digest
from nfopt.recipe.records import record
from nfopt.recipe.strict import Count, Fraction, Index
from nfopt.statefile import load_state, save_state

CHECKPOINT = "mask.safetensors"
HELD_OUT_NET = 10_000  # seeds from here on are for comparing, never for learning


class TrainMaskRecipe(Recipe):
    """The keys of `kind: train_mask`.

    Attributes:
        tasks: nets and data to learn from, by name; data sets that are held out for evaluation are refused.
        nets: nets of each task whose pruning is imitated; one more is kept aside to be looked at.
        survivors: kept fractions after each round of the iterative magnitude pruning that is imitated.
        network: sizes of the network.
        start: a checkpoint's name or path: a pointwise network, kept as it is, to which `network` with
            added_exchange adds.
        imitation: how it imitates.
        search: how its gain and its allocation are searched by trained loss.
        comparison_nets: fresh nets of each task on which SynFlow, the imitation and the outcome of the search
            are compared by trained loss; the best of the two is written.
        seed: initial weights of the network.
    """

    tasks: Annotated[dict[str, Annotated[MaskTask, record(MaskTask)]], Field(min_length=1)]
    nets: Count = 5
    survivors: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (0.5, 0.25, 0.12, 0.06, 0.03)
    network: Annotated[MaskNetworkConfig, record(MaskNetworkConfig)] = Field(
        default_factory=MaskNetworkConfig
    )
    start: str | None = None
    imitation: Annotated[ImitationConfig, record(ImitationConfig)] = Field(default_factory=ImitationConfig)
    search: Annotated[SearchConfig, record(SearchConfig)] = Field(default_factory=SearchConfig)
    comparison_nets: Count = 1
    seed: Index = 0

    @field_validator("survivors")
    @classmethod
    def _fall(cls, survivors: tuple[float, ...]) -> tuple[float, ...]:
        if any(b >= a for a, b in zip((1.0, *survivors), survivors, strict=False)):
            raise ValueError("must fall from round to round, from below 1.")
        return survivors

    @field_validator("tasks")
    @classmethod
    def _may_be_learned_from(cls, tasks: dict[str, MaskTask]) -> dict[str, MaskTask]:
        for name, task in tasks.items():
            try:
                require_trainable(task.source)
            except NfoptError as error:
                raise ValueError(f"{name}: {error}") from error
        return tasks


def plan_train_mask(recipe: TrainMaskRecipe) -> list[str]:
    """Return what a run would do."""
    return [
        f"prune {recipe.nets + 1} nets of each of {', '.join(recipe.tasks)} in {len(recipe.survivors)} "
        "rounds of magnitude pruning with rewinding",
        f"imitate which weights survive: {recipe.imitation.steps} steps",
        f"search gain and allocation by trained loss: {recipe.search.generations} generations of "
        f"{2 * recipe.search.pairs} candidates on {recipe.search.tasks_each} tasks",
        f"compare with SynFlow on {recipe.comparison_nets} fresh nets of each task; write {CHECKPOINT}",
    ]


@job("train_mask", TrainMaskRecipe, plan=plan_train_mask)
def run_train_mask(recipe: TrainMaskRecipe, context: RunContext) -> JobResult:
    """Train the network behind the learned pruning mask and write it as a checkpoint."""
    for task in recipe.tasks.values():
        data = task.data()
        context.note_data(f"{data.name}-{task.side}", data.content_hash)
    network, fit = _imitated(recipe, context)
    imitated = numbers_of(network)
    searched = _searched(recipe, network, context)
    table = context.piece("comparison", partial(_compared, recipe, network, (imitated, searched), context))
    better = table["searched"]["mean"] < table["imitated"]["mean"]
    chosen = with_numbers(network, searched if better else imitated)
    results = {
        "imitation": fit,
        "trained_log_loss": table,
        "chosen": "searched" if better else "imitated",
        "gain": float(chosen.gain),
        "allocation": dict(zip(TENSOR_INPUTS, chosen.allocation.tolist(), strict=True)),
    }
    file = context.folder / CHECKPOINT
    card = {"recipe": recipe.model_dump(mode="json", exclude={"output", "provenance"}), **results}
    save_checkpoint(file, network_checkpoint(chosen, card), overwrite=True)
    return JobResult(results=results, tables=(_fit_table(fit), _loss_table(table, results)), files=(file,))


def _survivors(recipe: TrainMaskRecipe, name: str, context: RunContext) -> list[dict[str, Tensor]]:
    task = recipe.tasks[name]
    key = digest(asdict(task), recipe.nets, recipe.survivors)
    file = context.folder / "survivors" / f"{name}-{key}.safetensors"
    if not file.is_file():
        found = surviving_rounds(task, range(recipe.nets + 1), recipe.survivors, progress=context.progress)
        save_state(file, found)
    return load_state(file)


def _tickets(recipe: TrainMaskRecipe, context: RunContext) -> dict[str, list[Ticket]]:
    found: dict[str, list[Ticket]] = {}
    for done, (name, task) in enumerate(recipe.tasks.items()):
        context.progress(Progress("tickets", done, len(recipe.tasks), name))
        survived, spec = _survivors(recipe, name, context), task.spec()
        found[name] = []
        for seed, rounds in enumerate(survived):
            seen = task.context(seed, spec)
            inputs = read_model(
                seen,
                look_ahead_steps=recipe.network.look_ahead_steps,
                look_ahead_lr=recipe.network.look_ahead_lr,
            )
            magnitudes = {key: p.detach().abs() for key, p in seen.parameters.items()}
            found[name].append(Ticket(inputs, magnitudes, rounds))
    context.progress(Progress("tickets", len(recipe.tasks), len(recipe.tasks)))
    return found


def _imitated(recipe: TrainMaskRecipe, context: RunContext) -> tuple[MaskNetwork, Any]:
    """Return the network after imitation, with the fit of each task's held-back net before and after."""
    file = context.folder / "imitation.safetensors"
    network = MaskNetwork(recipe.network, torch.Generator().manual_seed(recipe.seed))
    if recipe.start is not None:
        network.begin_at(read_network(recipe.start))
    if not file.is_file():
        tickets = _tickets(recipe, context)
        before = {name: _fit(network, nets[-1]) for name, nets in tickets.items()}
        learned = {name: nets[:-1] for name, nets in tickets.items()}
        imitate(
            network,
            learned,
            recipe.imitation,
            state_file=context.state_file("imitation"),
            progress=context.progress,
        )
        after = {name: _fit(network, nets[-1]) for name, nets in tickets.items()}
        card = {name: {"before": before[name], "after": after[name]} for name in tickets}
        save_checkpoint(file, network_checkpoint(network, card))
    checkpoint = load_checkpoint(file, kind=CHECKPOINT_KIND)
    return read_network(checkpoint), dict(checkpoint.card)


def _fit(network: MaskNetwork, ticket: Ticket) -> float:
    with torch.no_grad():
        return float(imitation_loss(network(ticket.inputs), ticket))


def _searched(recipe: TrainMaskRecipe, network: MaskNetwork, context: RunContext) -> Tensor:
    file = context.folder / "search.safetensors"
    if not file.is_file():
        state = context.state_file("search")
        found = search(
            network,
            recipe.tasks,
            recipe.search,
            load_state(state) if state.is_file() else None,
            keep=partial(save_state, state),
            progress=context.progress,
        )
        save_state(file, {"numbers": found})
    return load_state(file)["numbers"]


def _compared(
    recipe: TrainMaskRecipe, network: MaskNetwork, numbers: tuple[Tensor, Tensor], context: RunContext
) -> dict[str, Any]:
    """Return the mean log validation loss of each way on every task, over fresh nets and densities."""
    nominal = torch.zeros_like(numbers[0])
    ways = {"synflow": nominal, "imitated": numbers[0], "searched": numbers[1]}
    found: dict[str, dict[str, float]] = {way: {} for way in ways}
    for name, task in recipe.tasks.items():
        seeds = range(HELD_OUT_NET, HELD_OUT_NET + recipe.comparison_nets)
        losses = torch.stack(
            [
                trained_losses(
                    network,
                    task,
                    seed,
                    list(ways.values()),
                    recipe.search.densities,
                    progress=context.progress,
                )
                for seed in seeds
            ]
        ).mean((0, 2))
        for way, loss in zip(ways, losses.tolist(), strict=True):
            found[way][name] = loss
    return {way: {"mean": sum(v.values()) / len(v), "tasks": v} for way, v in found.items()}


def _fit_table(fit: Mapping[str, Any]) -> Table:
    rows = [(name, f"{v['before']:.3f}", f"{v['after']:.3f}") for name, v in fit.items()]
    notes = ("Nats against chance for the survivors of a net that was not learned from; lower is better.",)
    return Table(
        "imitation of iterative magnitude pruning", ("task", "magnitude", "learned"), tuple(rows), notes
    )


def _loss_table(found: Mapping[str, Any], results: Mapping[str, Any]) -> Table:
    ways = list(found)
    rows = [(name, *(f"{found[way]['tasks'][name]:.3f}" for way in ways)) for name in found[ways[0]]["tasks"]]
    rows.append(("mean", *(f"{found[way]['mean']:.3f}" for way in ways)))
    notes = (f"Log validation loss after training under the mask, fresh nets; written: {results['chosen']}.",)
    return Table("what the masks train to", ("task", *ways), tuple(rows), notes)


def load_trained(folder: Path) -> MaskNetwork:
    """Return the network that a run has written into its folder."""
    return read_network(load_checkpoint(folder / CHECKPOINT, kind=CHECKPOINT_KIND))
