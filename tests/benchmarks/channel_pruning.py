"""Benchmark P, channels: halve the smallest model of every timm family, beside Torch-Pruning, and prove it.

    python -m tests.benchmarks.channel_pruning --results results.jsonl --table channel_pruning.md

Both libraries get the same model, are asked for half the channels of everything that they can prune, and are
held to the same test: the smaller model runs, and gives the outputs that the original gives with zeros in
the place of what was removed. One process, resumable: families already in the results file are skipped.
"""

import argparse
import copy
import json
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from nfopt.errors import NfoptError
from nfopt.pruning import ChannelPruning, prune_channels
from tests.benchmarks.symmetry_coverage import families, input_sizes, smallest

COMMAND = "python -m tests.benchmarks.channel_pruning --results results.jsonl --table channel_pruning.md"
DENSITY = 0.5
TOLERANCE = 1e-6  # of Torch-Pruning's result; nfopt's own is proved to 1e-9
REFUSALS = (
    RuntimeError, AssertionError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError,
    ZeroDivisionError, RecursionError,
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


def measure(family: str, name: str, limit: int) -> dict[str, Any]:
    """Prune one model with both libraries."""
    size, options = next(iter(input_sizes(name)))
    model = timm.create_model(name, pretrained=False, **options).eval()
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    row: dict[str, Any] = {"family": family, "model": name, "input": size}
    libraries: dict[str, Callable[[nn.Module, Tensor], dict[str, Any]]] = {
        "nfopt": with_nfopt,
        "torch_pruning": with_torch_pruning,
    }
    for library, prune in libraries.items():
        start = time.process_time()
        try:
            with limited(limit):
                row[library] = prune(model, image)
        except OutOfTimeError:
            row[library] = {"ok": False, "fault": f"more than {limit} s"}
        row[library]["seconds"] = time.process_time() - start
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as markdown."""
    ours = sum(row["nfopt"]["ok"] for row in rows)
    theirs = sum(row["torch_pruning"]["ok"] for row in rows)
    halved = sum(row["nfopt"]["ok"] and not row["nfopt"]["held"] for row in rows)
    runs = sum(bool(row["torch_pruning"].get("runs")) for row in rows)
    lines = [
        "# Channel pruning: the smallest model of every timm family, half the channels",
        "",
        f"    {COMMAND}",
        "",
        f"torch {torch.__version__}, timm {timm.__version__}, {len(rows)} families. nfopt: {ours} shrink, "
        "run and equal the original with zeros in the place of what was removed (float64, 1e-9, random "
        f"weights); in {halved} every group of channels is halved, in the others all that nothing holds. "
        f"Torch-Pruning: {runs} run, {theirs} of them smaller and equal likewise (1e-6).",
        "",
        "Parameters, MACs, channels: share that is left. Groups: sets of coupled channels that were halved,",
        "of all; the others are held (mostly by a LayerNorm over the channels) and left whole. A model that",
        "Torch-Pruning prunes through a LayerNorm runs, but computes something else than with zeros.",
        "",
        "| family | model | groups | parameters | MACs | channels | seconds | Torch-Pruning | parameters |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row["family"]):
        ours, theirs = row["nfopt"], row["torch_pruning"]
        if ours["ok"]:
            cells = (
                f"{ours['pruned']}/{ours['groups']} | {100 * ours['parameters']:.0f} % | "
                f"{100 * ours['macs']:.0f} % | {100 * ours['channels']:.0f} %"
            )
        else:
            cells = f"{ours.get('fault', 'differs')[:80]} | | |"
        other = "same" if theirs["ok"] else "runs, differs" if theirs.get("runs") else theirs["fault"][:60]
        share = f"{100 * theirs['parameters']:.0f} %" if "parameters" in theirs else ""
        other = other.replace("|", "/").replace("\n", " ")
        lines.append(
            f"| {row['family']} | {row['model']} | {cells} | {ours['seconds']:.0f} | {other} | {share} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing from the results file, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, required=True, help="JSON lines, appended to")
    parser.add_argument("--table", type=Path, help="markdown file to write at the end")
    parser.add_argument("--families", nargs="*", help="only these")
    parser.add_argument("--limit", type=int, default=600, help="processor seconds for one model and library")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows: dict[str, dict[str, Any]] = {}
    if arguments.results.exists():
        rows = {r["family"]: r for r in map(json.loads, arguments.results.read_text().splitlines())}
    for family, models in families().items():
        if not models or family in rows or (arguments.families and family not in arguments.families):
            continue
        row = measure(family, smallest(models), arguments.limit)
        rows[family] = row
        with arguments.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        sys.stderr.write(json.dumps(row)[:600] + "\n")
    if arguments.table:
        arguments.table.write_text(table(list(rows.values())))


if __name__ == "__main__":
    main()
