"""Benchmark S: trace and verify the smallest model of every timm family, and write the table.

    python tests/benchmarks/symmetry_coverage.py --results results.jsonl --table symmetry_coverage.md

One process, resumable: families already in the results file are skipped.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch

from nfopt.errors import NfoptError
from nfopt.symmetry import trace_permutation_spec, verify

CONTROLS = 8
TRIALS = 2
SMALLER_SIZES = (64, 96, 112, 128, 160, 168, 192, 196, 224)
REFUSALS = (
    RuntimeError,
    AssertionError,
    ValueError,
    TypeError,
    IndexError,
    NotImplementedError,
    ZeroDivisionError,
)
COMMAND = "python tests/benchmarks/symmetry_coverage.py --results results.jsonl --table symmetry_coverage.md"


def families() -> dict[str, list[str]]:
    """Return the models of every family, by family name."""
    return {family: timm.list_models(module=family) for family in timm.list_modules()}


def parameter_count(model: str) -> float:
    """Return the number of parameters of a model, built without memory; infinite where that fails."""
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in timm.create_model(model, pretrained=False).parameters())
    except (RuntimeError, NotImplementedError, TypeError):
        return float("inf")


def smallest(models: list[str]) -> str:
    """Return the model with the fewest parameters, the first by name among equals."""
    return min(models, key=lambda model: (parameter_count(model), model))


def takes(name: str, size: int, options: dict[str, int]) -> bool:
    """Return whether a model built with `options` runs on images of one size."""
    try:
        with torch.device("meta"):
            timm.create_model(name, pretrained=False, **options).eval()(torch.empty(1, 3, size, size))
    except REFUSALS:
        return False
    return True


def input_sizes(name: str) -> Iterator[tuple[int, dict[str, int]]]:
    """Yield the image sizes that a model takes, smallest first, with the options to build it for each."""
    height = timm.get_pretrained_cfg(name).input_size[-1]
    for size in [size for size in SMALLER_SIZES if size < height]:
        options = next((options for options in ({}, {"img_size": size}) if takes(name, size, options)), None)
        if options is not None:
            yield size, options
    yield height, {}


def measure(family: str, name: str) -> dict[str, Any]:
    """Trace and verify one model and return its row.

    The smallest input leaves some models a single position in their last stage, where attention has nothing
    to choose from. When a control does not change the output, the next input of twice the size decides.
    """
    row: dict[str, Any] = {}
    for size, options in input_sizes(name):
        if not row or size >= 2 * row["input"] or "fault" in row:
            row = measure_at(family, name, size, options)
        if not row.get("suspects") and "fault" not in row:
            break
    return row


def measure_at(family: str, name: str, size: int, options: dict[str, int]) -> dict[str, Any]:
    """Trace and verify one model at one input size."""
    model = timm.create_model(name, pretrained=False, **options)
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    row: dict[str, Any] = {"family": family, "model": name, "input": image.shape[-1]}
    start, start_wall = time.process_time(), time.perf_counter()
    try:
        spec = trace_permutation_spec(model, image)
        row |= {"groups": len(spec.groups), "coverage": spec.coverage, "unruled": list(spec.unruled)}
        row["unused"] = len(spec.unused)
        row["trace_seconds"] = time.process_time() - start
        report = verify(model, spec, image, trials=TRIALS, controls=CONTROLS)
    except NfoptError as error:
        return row | {"fault": f"{type(error).__name__}: {error}"}
    row["seconds"] = time.process_time() - start
    row["wall_seconds"] = time.perf_counter() - start_wall
    row |= {"error": report.max_error, "passed": report.passed, "notes": list(report.notes)}
    row["guilty"] = [group for group, _ in report.guilty]
    row["controls"] = len(report.controls)
    row["suspects"] = [str(control) for control in report.suspected_ties]
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as markdown."""
    done = [row for row in rows if "seconds" in row]
    passed = sum(bool(row.get("passed")) for row in done)
    suspects = sum(len(row["suspects"]) for row in done)
    lines = [
        "# Symmetry coverage: the smallest model of every timm family",
        "",
        f"    {COMMAND}",
        "",
        f"torch {torch.__version__}, timm {timm.__version__}, float64, one thread. "
        f"{len(done)} of {len(rows)} families traced, {passed} verified to 1e-9; "
        f"median trace + verify {median(row['seconds'] for row in done):.2f} s "
        f"(trace alone {median(row['trace_seconds'] for row in done):.2f} s); "
        f"{suspects} of {sum(row['controls'] for row in done)} negative controls left the output unchanged.",
        "",
        "Groups: sets of interchangeable indices. Covered: share of the parameters with a permutable axis.",
        "Error: largest max|dy| / std(y) over the trials, all groups permuted at once, every parameter and",
        "statistic drawn at random. Controls: one group permuted save at some of its places; how many of",
        "them changed the output. Seconds: processor time of tracing and verifying, one thread.",
        "",
        "| family | model | input | groups | covered % | error | controls | seconds | no rule for |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row["family"]):
        if "seconds" not in row:
            lines.append(
                f"| {row['family']} | {row['model']} | {row['input']} | {row.get('fault')} | | | | | |"
            )
            continue
        verdict = "" if row["passed"] else " FAILED"
        changed = row["controls"] - len(row["suspects"])
        covered = 100 * row["coverage"]
        lines.append(
            f"| {row['family']} | {row['model']} | {row['input']} | {row['groups']} | {covered:.2f} "
            f"| {row['error']:.0e}{verdict} | {changed}/{row['controls']} "
            f"| {row['seconds']:.1f} | {', '.join(row['unruled'])} |"
        )
    noted = [(row["family"], suspect) for row in done for suspect in row["suspects"]]
    if noted:
        lines += ["", "Controls that left the output unchanged:", ""]
        lines += [f"- {family}: {suspect}" for family, suspect in noted]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing from the results file, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, required=True, help="JSON lines, appended to")
    parser.add_argument("--table", type=Path, help="markdown file to write at the end")
    parser.add_argument("--families", nargs="*", help="only these")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows: dict[str, dict[str, Any]] = {}
    if arguments.results.exists():
        for line in arguments.results.read_text().splitlines():
            row = json.loads(line)
            rows[row["family"]] = row
    for family, models in families().items():
        if not models or family in rows or (arguments.families and family not in arguments.families):
            continue
        row = measure(family, smallest(models))
        rows[family] = row
        with arguments.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        sys.stderr.write(json.dumps(row) + "\n")
    if arguments.table:
        arguments.table.write_text(table(list(rows.values())))


if __name__ == "__main__":
    main()
