"""Job `race`: many tasks, tuned baselines with equal budgets, and who is first at a tuned method's loss."""

import hashlib
from collections.abc import Mapping

from pydantic import JsonValue

from nfopt.progress import Progress
from nfopt.recipe.compare.comparison import Method
from nfopt.recipe.inputs import device_of
from nfopt.recipe.job import JobResult, RunContext, job
from nfopt.recipe.race.crew import crew_of
from nfopt.recipe.race.heat import Heat, standing
from nfopt.recipe.race.options import RaceRecipe, entrants, heats, planned_heats
from nfopt.recipe.race.report import report
from nfopt.recipe.race.scores import HeatResult
from nfopt.recipe.race.search import candidate_count
from nfopt.recipe.race.trainings import Archive, Entrant, train_all
from nfopt.recipe.timing import step_seconds
from nfopt.recipe.trial import loaded


def plan_race(recipe: RaceRecipe) -> list[str]:
    """Return what a run would do."""
    lines = []
    wanted = entrants(recipe)
    for heat in heats(recipe):
        here = [entrant for entrant in wanted if entrant.heat == heat]
        if not here:
            lines.append(f"{heat.name}: not in this part")
            continue
        count = sum(entrant.trainings for entrant in here)
        planned = sum(len(planned_heats(recipe, heat, entrant.key)) for entrant in here) * len(heat.seeds)
        lines.append(
            f"{heat.name}: {heat.task.model.name} on {heat.task.data.name}, {len(here)} methods, "
            f"{heat.search} search, {count} trainings of {heat.total_steps} steps"
            + (f", {planned} of planned lengths" if planned else "")
        )
    total = sum(entrant.steps for entrant in wanted)
    tried = max(candidate_count(options, recipe.search) for options in recipe.methods.values())
    lines.append(
        f"settings tried for each tuned method: {tried}, on tuning seeds {_listed(recipe.tuning_seeds)}"
    )
    lines.append(f"reported: seeds {_listed(recipe.seeds)}; {total} optimizer steps in all")
    return lines


def _listed(seeds: tuple[int, ...]) -> str:
    return ", ".join(map(str, seeds))


@job("race", RaceRecipe, plan=plan_race)
def run_race(recipe: RaceRecipe, context: RunContext) -> JobResult:
    """Race tuned optimizers over many tasks: steps and time to a tuned method's loss, final losses."""
    wanted = entrants(recipe)
    for entrant in wanted:
        entrant.options.check_installed()
    for name, data in {entrant.heat.task_name: entrant.heat.task.data for entrant in wanted}.items():
        context.note_data(name, loaded(data).content_hash)
    archive = Archive(context)
    context.progress(Progress("race", 0, sum(entrant.steps for entrant in wanted)))
    with crew_of(recipe.processes, recipe.threads, context.progress) as crew:
        train_all(wanted, archive, crew, context, recipe.processes)
    results = [_result(recipe, heat, archive) for heat in heats(recipe)]
    with crew_of(1, recipe.threads, context.progress):
        seconds = {result.heat.name: _step_seconds(recipe, result, wanted, context) for result in results}
    return report(recipe, results, {name: known for name, known in seconds.items() if known}, context.folder)


def _result(recipe: RaceRecipe, heat: Heat, archive: Archive) -> HeatResult:
    """Return a heat from what the folder holds, whether or not this run was asked for it."""
    standings = {key: standing(heat, key, options, archive) for key, options in recipe.methods.items()}
    planned: dict[str, dict[float, Method]] = {}
    for key, options in recipe.methods.items():
        shorter = {
            share: standing(of_length, key, options, archive).method
            for share, of_length in planned_heats(recipe, heat, key).items()
        }
        through = {share: method for share, method in shorter.items() if method is not None}
        if through and len(through) == len(shorter):
            planned[key] = through
    return HeatResult(
        heat,
        {key: state.method for key, state in standings.items() if state.method is not None},
        {key: state.total - state.done for key, state in standings.items() if state.method is None},
        recipe.unreached_factor,
        planned,
    )


def _step_seconds(
    recipe: RaceRecipe, result: HeatResult, wanted: list[Entrant], context: RunContext
) -> Mapping[str, float]:
    """Return seconds per step of a heat's methods, timed together when a run has done the last of them."""
    heat = result.heat
    if not result.methods:
        return {}
    names = sorted(heat.trial(method.options, 0).name for method in result.methods.values())
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]
    name = f"step-times-{heat.name}-{digest}"
    known = context.kept(name)
    if known is not None or all(entrant.heat != heat for entrant in wanted):
        return known or {}

    def measure() -> JsonValue:
        data = loaded(heat.task.data)
        seconds = step_seconds(
            {key: method.options for key, method in result.methods.items()},
            lambda: heat.task.model.build(data, heat.seeds[0]),
            data,
            batch_size=heat.task.batch_size,
            total_steps=heat.total_steps,
            device=device_of(heat.device),
        )
        return dict(seconds)

    return context.piece(name, measure)
