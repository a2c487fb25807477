"""The tables of a race: final scores of each heat, and how soon each method is at a tuned method's loss."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from nfopt.recipe.compare.comparison import Method, edges, spread
from nfopt.recipe.job import Table
from nfopt.recipe.race.scores import Difference, HeatResult, Overall, Pace, overall
from nfopt.recipe.timing import NO_UPDATE

StepSeconds = Mapping[str, Mapping[str, float]]
"""Seconds per step by heat and method, `NO_UPDATE` among them."""


def final_table(result: HeatResult, base: str | None, labels: Mapping[str, str]) -> Table:
    """Return the final scores of a heat, a row for each method that is through.

    Args:
        result: the heat.
        base: key of the method from which differences are shown; None for none.
        labels: how methods are called.
    """
    heat = result.heat
    against = base is not None and base in result.methods
    heads = ["method", "train\nloss", "val\nloss", "test\nloss", "test\nacc. %"]
    if against and base is not None:
        heads.append(f"test loss -\n{labels[base]}")
    rows = []
    for key, method in result.methods.items():
        row = [method.label, *_final_cells(method)]
        if against and base is not None:
            row.append("" if key == base else _difference(result.difference(key, base, "test")))
        rows.append(tuple(row))
    noise = heat.task.data.label_noise
    details = [f"{heat.task.model.name} on {heat.task.data.name}"]
    details += [f"{heat.task.data.n_train:,} images"] if heat.task.data.n_train else []
    details += [f"{100 * noise:g} % flipped labels"] if noise else []
    title = f"{heat.name}: {', '.join(details)}, {heat.total_steps:,} steps of {heat.task.batch_size}"
    return Table(title, tuple(heads), tuple(rows), _final_notes(result, labels))


def _final_cells(method: Method) -> tuple[str, ...]:
    diverged = sum(run.diverged_at is not None for run in method.runs)
    if diverged:
        return ("diverged", f"{diverged} of {len(method.runs)}", "", "")
    finals = [run.final for run in method.runs]
    return (
        f"{fmean(final['train']['loss'] for final in finals):.3f}",
        spread([final["val"]["loss"] for final in finals], ".3f"),
        spread([final["test"]["loss"] for final in finals], ".3f"),
        spread([100 * final["test"]["accuracy"] for final in finals], ".1f"),
    )


def _difference(difference: Difference | None) -> str:
    if difference is None or difference.mean is None:
        return "-"
    error = "" if difference.error is None else f"±{difference.error:.3f}"
    return f"{difference.mean:+.3f}{error}"


def _final_notes(result: HeatResult, labels: Mapping[str, str]) -> tuple[str, ...]:
    seeds = len(result.heat.seeds)
    notes = [f"± standard deviation over {seeds} seeds; differences: ± paired standard error."]
    for method in result.methods.values():
        if method.tuned:
            at_edge = edges(method)
            chosen = ", ".join(
                f"{name} {getattr(method.options, name)}{'*' if name in at_edge else ''}"
                for name in method.tuned
            )
            tried = f"{len(method.candidates)} tried" if method.candidates else "as found by an earlier race"
            notes.append(f"{method.label}: {chosen} ({tried})")
    if any(edges(method) for method in result.methods.values()):
        notes.append("* at the edge of what was tried: a better one may lie beyond")
    if result.missing:
        missing = ", ".join(f"{labels[key]} ({count} trainings)" for key, count in result.missing.items())
        notes.append(f"Not there yet: {missing}")
    return tuple(notes)


def pace_table(
    results: Sequence[HeatResult],
    keys: Sequence[str],
    reference: str,
    labels: Mapping[str, str],
    seconds: StepSeconds | None = None,
) -> Table:
    """Return how soon each method is at the reference's final validation loss: a row for each heat.

    Args:
        results: the heats.
        keys: the methods, a column each.
        reference: the tuned method.
        labels: how methods are called.
        seconds: seconds per step; with them the table is in wall time, without them in steps.
    """
    rows = []
    for result in results:
        if reference not in result.methods:
            continue
        ratios = _ratios(keys, result, reference, seconds)
        cells = [_pace_cell(result, key, reference, ratios.get(key)) for key in keys]
        rows.append((result.heat.name, *cells))
    totals = []
    for key in keys:
        weight = {
            r.heat.name: ratio for r in results if (ratio := _ratios([key], r, reference, seconds).get(key))
        }
        found = overall(results, key, reference, weight)
        totals.append(_cell(found))
    rows.append(("geometric mean", *totals))
    unit = "Wall time" if seconds is not None else "Steps"
    share = f"{labels[reference]}'s own"
    factor = results[0].unreached_factor if results else 0
    untargeted = sum(overall(results, key, reference).untargeted for key in keys)
    notes = [
        f"{unit} until the first evaluation at or below the target, over {share}, seed by seed:"
        " geometric means. In brackets the number of seeds that never reach it; each counts as "
        f"{factor:g} times the full length. -: not run yet, or without a target.",
    ]
    if untargeted:
        notes.append(f"{untargeted} seeds have no target, because {labels[reference]} diverged: left out.")
    title = f"{unit} to the final validation loss of {labels[reference]}"
    return Table(title, _heads(keys, labels), tuple(rows), tuple(notes))


def planned_table(
    results: Sequence[HeatResult], keys: Sequence[str], reference: str, labels: Mapping[str, str]
) -> Table | None:
    """Return how short a training may be planned to end at the reference's loss; None if nothing was run.

    Args:
        results: the heats.
        keys: the methods; those that were trained over planned lengths get a column.
        reference: the tuned method.
        labels: how methods are called.
    """
    run = [key for key in keys if any(result.planned_pace(key, reference) for result in results)]
    if not run:
        return None
    rows = []
    for result in results:
        paces = [result.planned_pace(key, reference) for key in run]
        if any(paces):
            rows.append((result.heat.name, *map(_cell, paces)))
    totals = [overall(results, key, reference, planned=True) for key in run]
    rows.append(("geometric mean", *map(_cell, totals)))
    tried = sorted({share for result in results for key in run for share in result.planned.get(key, {})})
    notes = (
        f"The least share of {labels[reference]}'s steps from which on every training that is planned for so "
        "many, its schedule ending there, ends at or below the target, seed by seed: geometric means. "
        f"Tried: {', '.join(f'{share:g}' for share in (*tried, 1))}. In brackets the number of seeds that "
        f"end above it at full length; each counts as {results[0].unreached_factor:g}.",
    )
    title = f"Steps to plan for, to end at the final validation loss of {labels[reference]}"
    return Table(title, _heads(run, labels), tuple(rows), notes)


def _heads(keys: Sequence[str], labels: Mapping[str, str]) -> tuple[str, ...]:
    """Return headings over two lines where a label has two parts."""
    return ("", *(labels[key].replace(" ", "\n").replace("-", "-\n") for key in keys))


def _ratios(
    keys: Sequence[str], result: HeatResult, reference: str, seconds: StepSeconds | None
) -> dict[str, float]:
    if seconds is None:
        return dict.fromkeys(keys, 1.0)
    known = seconds.get(result.heat.name, {})
    return {key: known[key] / known[reference] for key in keys if key in known and reference in known}


def _pace_cell(result: HeatResult, key: str, reference: str, ratio: float | None) -> str:
    pace = result.pace(key, reference)
    return "-" if ratio is None else _cell(pace, ratio)


def _cell(found: Pace | Overall | None, ratio: float = 1.0) -> str:
    """Return a mean with the number of seeds that never reach the target; a dash where there is none."""
    if found is None or found.mean is None:
        return "-"
    return f"{found.mean * ratio:.2f}" + (f" ({found.unreached})" if found.unreached else "")


def step_time_table(
    results: Sequence[HeatResult],
    keys: Sequence[str],
    reference: str,
    labels: Mapping[str, str],
    seconds: StepSeconds,
) -> Table:
    """Return each method's step time over the reference's, and its update over forward and backward."""
    rows = []
    for result in results:
        known = seconds.get(result.heat.name, {})
        if reference not in known:
            continue
        over = [f"{known[key] / known[reference]:.2f}" if key in known else "-" for key in keys]
        rows.append((f"{result.heat.name}: step", *over))
        work = known[NO_UPDATE]
        update = [f"{(known[key] - work) / work:.2f}" if key in known else "-" for key in keys]
        rows.append(("  update", *update))
    return Table(
        "Step times, measured in turns in one process",
        _heads(keys, labels),
        tuple(rows),
        (
            f"step: forward, backward and update over those of {labels[reference]};",
            "update: what the update adds, over forward and backward alone.",
        ),
    )


def missing_table(results: Sequence[HeatResult], labels: Mapping[str, str]) -> Table | None:
    """Return which methods are not through in which heats; None if all are."""
    rows = tuple(
        (result.heat.name, ", ".join(f"{labels[key]} ({n})" for key, n in result.missing.items()))
        for result in results
        if result.missing
    )
    if not rows:
        return None
    return Table("Not there yet", ("task", "methods, with the trainings that they lack"), rows)
