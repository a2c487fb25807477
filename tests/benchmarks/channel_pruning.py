"""Benchmark P, channels: halve the smallest model of every timm family, beside Torch-Pruning, and prove it.

    python -m tests.benchmarks.channel_pruning --results results.jsonl --table channel_pruning.md

Both libraries get the same model, are asked for half the channels of everything that they can prune, and are
held to the same test: the smaller model runs, and gives the outputs that the original gives with zeros in
the place of what was removed. One process, small models first, resumable: what is in the results file
already is skipped, `--again nfopt` measures one library anew and the last result counts.
"""

import argparse
import copy
import gc
import json
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from torch import Tensor, nn

from nfopt.errors import NfoptError
from nfopt.pruning import ChannelPruning, prune_channels
from tests.benchmarks.symmetry_coverage import families, input_sizes, parameter_count, smallest

COMMAND = "python -m tests.benchmarks.channel_pruning --results results.jsonl --table channel_pruning.md"
DENSITY = 0.5
TOLERANCE = 1e-6  # of Torch-Pruning's result; nfopt's own is proved to 1e-9
REFUSALS = (
    RuntimeError, AssertionError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError,
    ZeroDivisionError, RecursionError, MemoryError,
)  # fmt: skip


class OutOfTimeError(Exception):
    """A model took longer than the limit."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise OutOfTimeError in the block after some seconds of processor time."""

    def stop(*_: Any) -> None:
        raise OutOfTimeError

    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
        # What was broken off may have left it off.
        torch.set_grad_enabled(True)


def channel_share(pruning: ChannelPruning) -> float:
    """Return the share of all channels in groups that remain."""
    rows = pruning.plan.rows()
    return sum(row.kept for row in rows) / sum(row.size for row in rows)


def with_nfopt(model: nn.Module, image: Tensor) -> dict[str, Any]:
    """Prune with nfopt and return what came of it."""
    try:
        pruning = prune_channels(model, image, DENSITY)
    except NfoptError as error:
        return {"ok": False, "fault": str(error).splitlines()[0][:200]}
    except REFUSALS as error:
        return {"ok": False, "fault": f"{type(error).__name__}: {error}"[:200]}
    return {
        "ok": pruning.proof.passed,
        "error": pruning.proof.error,
        "parameters": pruning.after.parameters / pruning.before.parameters,
        "macs": pruning.after.macs / max(pruning.before.macs, 1),
        "channels": channel_share(pruning),
        "groups": len(pruning.plan.rows()),
        "pruned": len(pruning.plan.kept),
        "held": {group: reason[:160] for group, reason in pruning.held.items()},
    }


def with_torch_pruning(model: nn.Module, image: Tensor) -> dict[str, Any]:
    """Prune with Torch-Pruning, as its documentation does, and return what came of it."""
    import torch_pruning

    model = copy.deepcopy(model).double().eval()
    randomise(model)
    image = image.double()
    original = copy.deepcopy(model)
    before = sum(p.numel() for p in model.parameters())
    head = model.get_classifier() if hasattr(model, "get_classifier") else None  # pyright: ignore
    ignored = [head] if isinstance(head, nn.Module) else list(head) if isinstance(head, list | tuple) else []
    heads = {
        part.qkv: part.num_heads
        for part in model.modules()
        if isinstance(getattr(part, "qkv", None), nn.Module) and hasattr(part, "num_heads")
    }
    try:
        pruner = torch_pruning.pruner.MagnitudePruner(
            model, image, torch_pruning.importance.GroupMagnitudeImportance(),
            pruning_ratio=1 - DENSITY, ignored_layers=ignored, num_heads=heads, prune_num_heads=bool(heads),
        )  # fmt: skip
        names = {part: name for name, part in model.named_modules()}
        zero = Zeroes(original, names)
        for group in pruner.step(interactive=True):
            zero.note(group)
            group.prune()
        for part in model.modules():
            if getattr(part, "qkv", None) in heads and part.qkv in pruner.num_heads:
                part.num_heads = pruner.num_heads[part.qkv]
                part.head_dim = part.qkv.out_features // (3 * part.num_heads)
                part.attn_dim = part.num_heads * part.head_dim
        after = sum(p.numel() for p in model.parameters())
        row: dict[str, Any] = {"parameters": after / before}
        with torch.no_grad():
            outputs = model(image)
    except REFUSALS as error:
        return {"ok": False, "runs": False, "fault": f"{type(error).__name__}: {error}"[:200]}
    with torch.no_grad():
        reference = original(image)
    outputs, reference = first_tensor(outputs), first_tensor(reference)
    gap = (
        float((outputs - reference).abs().max() / reference.std())
        if outputs.shape == reference.shape
        else 1e9
    )
    same = gap <= TOLERANCE
    return row | {"runs": True, "gap": gap if gap == gap else None, "ok": same and after < before}


class Zeroes:
    """Writes zeros into the original where Torch-Pruning removes something from its copy."""

    def __init__(self, original: nn.Module, names: dict[nn.Module, str]) -> None:
        self._parts = dict(original.named_modules())
        self._names = names
        self._left: dict[tuple[str, str], list[int]] = {}

    @torch.no_grad()
    def note(self, group: Any) -> None:
        """Zero in the original what a group of Torch-Pruning is about to remove."""
        for dependency, indices in group:
            name = self._names.get(dependency.target.module)
            if name is None:
                continue
            side = "in" if "in_channels" in dependency.handler.__name__ else "out"
            self._zero(name, side, sorted(set(indices)))

    def _zero(self, name: str, side: str, indices: list[int]) -> None:
        part: Any = self._parts[name]
        weight = getattr(part, "weight", None)
        if not isinstance(weight, Tensor):
            return
        dim = 0 if side == "out" or weight.dim() == 1 else 1
        if isinstance(part, nn.modules.conv._ConvNd) and part.transposed:
            dim = 1 - dim
        left = self._left.setdefault((name, str(dim)), list(range(weight.shape[dim])))
        old = [left[i] for i in indices if i < len(left)]
        weight.index_fill_(dim, torch.tensor(old, dtype=torch.long), 0)
        if getattr(part, "bias", None) is not None and (side == "out" or weight.dim() == 1):
            part.bias.index_fill_(0, torch.tensor(old, dtype=torch.long), 0)
        gone = set(old)
        self._left[name, str(dim)] = [i for i in left if i not in gone]


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Give scales and shifts random values, so that zero-initialised ones hide nothing."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.3 * noise)


def first_tensor(tree: Any) -> Tensor:
    """Return the first tensor of an output."""
    return next(leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor))


def measure(family: str, name: str, library: str, limit: int) -> dict[str, Any]:
    """Prune one model with one library."""
    size, options = next(iter(input_sizes(name)))
    model = timm.create_model(name, pretrained=False, **options).eval()
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    start = time.process_time()
    try:
        with limited(limit):
            found = LIBRARIES[library](model, image)
    except OutOfTimeError:
        found = {"ok": False, "fault": f"more than {limit} s"}
    if is_memory(found.get("fault", "")):
        found["fault"] = "more memory than the limit"
    found["seconds"] = time.process_time() - start
    return {"family": family, "model": name, "input": size, "library": library, **found}


LIBRARIES: dict[str, Callable[[nn.Module, Tensor], dict[str, Any]]] = {
    "nfopt": with_nfopt,
    "torch_pruning": with_torch_pruning,
}


def is_memory(fault: str) -> bool:
    """Return whether a fault is that of an allocation that was refused."""
    return fault.startswith("MemoryError") or "allocate memory" in fault


def smallest_models(file: Path) -> dict[str, str]:
    """Return the smallest model of every family, smallest first; found in minutes, then kept in a file."""
    if not file.exists():
        found = {family: smallest(models) for family, models in families().items() if models}
        found = dict(sorted(found.items(), key=lambda item: parameter_count(item[1])))
        file.write_text(json.dumps(found, indent=1))
    return json.loads(file.read_text())


def table(rows: dict[tuple[str, str], dict[str, Any]]) -> str:
    """Return the rows as markdown."""
    pairs = {family: (row, rows[family, "torch_pruning"]) for (family, library), row in rows.items()
             if library == "nfopt" and (family, "torch_pruning") in rows}  # fmt: skip
    ours = [row for row, _ in pairs.values()]
    theirs = [row for _, row in pairs.values()]
    good = [row for row in ours if row["ok"]]
    lines = [
        "# Channel pruning: the smallest model of every timm family, half the channels",
        "",
        f"    {COMMAND}",
        "",
        f"torch {torch.__version__}, timm {timm.__version__}, one CPU core. Of {len(pairs)} families "
        f"(timm has {len(families())}):",
        "",
        "| | nfopt | Torch-Pruning |",
        "|---|---|---|",
        f"| smaller, and equal to the original with zeros in the place of what was removed | {len(good)} | "
        f"{sum(row['ok'] for row in theirs)} |",
        f"| smaller and runs | {len(good)} | {sum(smaller(row) for row in theirs)} |",
        f"| every group halved, and equal | {sum(not row['held'] for row in good)} | |",
        f"| took more time or memory than the limit | {sum(timed_out(row) for row in ours)} | "
        f"{sum(timed_out(row) for row in theirs)} |",
        f"| median share of the parameters that is left | {middle(good)} | {middle(theirs)} |",
        "",
        "Equal: in float64 with random weights, to 1e-9 (nfopt) and 1e-6 (Torch-Pruning). nfopt leaves a",
        "group whole that cannot go with equality, most often the stream that a LayerNorm looks at; a model",
        "that Torch-Pruning prunes through a LayerNorm runs, but computes something else than with zeros.",
        "",
        "Groups: sets of coupled channels that nfopt halved, of all. Parameters, MACs, channels: share left.",
        "",
        "| family | model | groups | parameters | MACs | channels | s | Torch-Pruning | parameters | s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [line(family, *pair) for family, pair in sorted(pairs.items())]
    held = sorted((family, row["held"]) for family, (row, _) in pairs.items() if row.get("held"))
    lines += [
        "",
        "## What holds channels",
        "",
        "| family | groups | where and why (the first of them) |",
        "|---|---|---|",
    ]
    lines += [
        f"| {family} | {len(groups)} | {plain(next(iter(groups.values())))} |" for family, groups in held
    ]
    return "\n".join(lines) + "\n"


def line(family: str, ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Return one family's row of the table."""
    cells = f"{plain(ours.get('fault', 'differs'))} | | | "
    if ours["ok"]:
        shares = (f"{100 * ours[key]:.0f} %" for key in ("parameters", "macs", "channels"))
        cells = f"{ours['pruned']}/{ours['groups']} | " + " | ".join(shares)
    other = "same" if theirs["ok"] else "not smaller" if theirs.get("runs") and not smaller(theirs) else \
        "differs" if theirs.get("runs") else plain(theirs["fault"])[:60]  # fmt: skip
    share = f"{100 * theirs['parameters']:.0f} %" if "parameters" in theirs else ""
    return (
        f"| {family} | {ours['model']} | {cells} | {ours['seconds']:.0f} | {other} | {share} | "
        f"{theirs['seconds']:.0f} |"
    )


def smaller(row: dict[str, Any]) -> bool:
    """Return whether what Torch-Pruning made runs and has fewer parameters."""
    return bool(row.get("runs")) and row["parameters"] < 1


def timed_out(row: dict[str, Any]) -> bool:
    """Return whether a library ran out of time on a model."""
    return row.get("fault", "").startswith("more ")


def middle(rows: list[dict[str, Any]]) -> str:
    """Return the median share of parameters that is left, of models that run."""
    found = [row["parameters"] for row in rows if "parameters" in row]
    return f"{100 * median(found):.0f} %" if found else ""


def plain(text: str) -> str:
    """Return a text that fits into a cell of a markdown table."""
    return text.replace("|", "/").replace("\n", " ")[:160]


def main() -> None:
    """Run what is missing from the results file, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, required=True, help="JSON lines, appended to")
    parser.add_argument("--table", type=Path, help="markdown file to write at the end")
    parser.add_argument("--families", nargs="*", help="only these")
    parser.add_argument("--again", nargs="*", default=(), choices=list(LIBRARIES), help="measured anew")
    parser.add_argument("--limit", type=int, default=600, help="processor seconds for one model and library")
    parser.add_argument(
        "--memory", type=int, help="GiB that this process may take; a model that needs more fails"
    )
    arguments = parser.parse_args()
    if arguments.memory:
        resource.setrlimit(resource.RLIMIT_DATA, (arguments.memory * 2**30,) * 2)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    if arguments.results.exists():
        lines = map(json.loads, arguments.results.read_text().splitlines())
        rows = {(row["family"], row["library"]): row for row in lines}
    for family, name in smallest_models(arguments.results.with_suffix(".models.json")).items():
        for library in LIBRARIES:
            known = (family, library) in rows and library not in arguments.again
            if known or (arguments.families and family not in arguments.families):
                continue
            row = rows[family, library] = measure(family, name, library, arguments.limit)
            gc.collect()  # cycles of one model are not to count as the next one's memory
            with arguments.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            sys.stderr.write(json.dumps(row)[:400] + "\n")
    if arguments.table:
        arguments.table.write_text(table(rows))


if __name__ == "__main__":
    main()
