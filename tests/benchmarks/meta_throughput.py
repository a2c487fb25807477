"""Where meta-training's time goes: inner steps per second, and the share of each part of an inner step.

    python -m tests.benchmarks.meta_throughput [--copies 16 64] [--rounds 5] [--task mlp-8 ...]

The parts of one task take turns in one process, so that a busy machine slows all alike: read the shares and
ratios, not the seconds. `ops` counts the tensor operations of one step: times the few microseconds that each
costs to dispatch, it is a floor under the step's time, whatever the tensors' size.
"""

import argparse
from collections import deque
from collections.abc import Callable

import torch
from torch.func import vmap
from torch.utils._python_dispatch import TorchDispatchMode

from nfopt.meta import Architecture, Objective, Task, TaskConfig, TruncatedUnroll
from nfopt.meta.rules import LearnedRules
from nfopt.optim import RuleConfig
from nfopt.recipe.timing import interleaved_seconds

TASKS = {
    "mlp-8": TaskConfig(Architecture("mlp", (32, 32), 10, (1, 8, 8)), batch_images=64),
    "mlp-14": TaskConfig(Architecture("mlp", (64, 64), 10, (1, 14, 14)), "teacher", batch_images=64),
    "cnn-8": TaskConfig(Architecture("cnn", (8, 16), 10, (1, 8, 8), norm="batch"), batch_images=32),
    "resnet-8": TaskConfig(Architecture("resnet", (8, 16), 10, (1, 8, 8), norm="batch"), batch_images=32),
}
STEPS = 20


class Counted(TorchDispatchMode):
    """Counts the operations that reach the kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def parts(
    name: str, copies: int, device: torch.device
) -> tuple[dict[str, Callable[[], None]], dict[str, float], int]:
    """Return the parts of training as functions, how often each runs per step, and a step's operations."""
    rules = LearnedRules(RuleConfig())
    theta, layout = rules.init_theta(0)
    task = Task.make(TASKS[name], device=device)
    objective = Objective()
    unroll = TruncatedUnroll(task, rules(task), layout, range(copies // 2), objective)
    thetas = theta.to(device).expand(copies, -1)
    state = unroll.run(thetas, unroll.start().repeated(2), STEPS).state
    named, progress = layout.unflatten(thetas), torch.full((), 0.5, device=device)
    (batch,) = unroll.batches(state.step, 1, 2)
    grads = unroll.gradients(state.params, {}, batch)
    images, labels = unroll.validation
    validation = torch.cat([images] * 2), torch.cat([labels] * 2)

    def whole() -> None:
        unroll.run(thetas, state, STEPS)

    def data() -> None:
        deque(unroll.batches(state.step, STEPS, 2), maxlen=0)

    def forward_backward() -> None:
        unroll.gradients(state.params, {}, batch)

    def rule() -> None:
        unroll.rule(named, state.params, grads, state.rule_state, progress, 1)

    def probe() -> None:
        with torch.no_grad():
            vmap(task.loss)(state.params, {}, *validation)

    with Counted() as counted:
        whole()
    actions = {"whole": whole, "data": data, "fwd+bwd": forward_backward, "rule": rule, "probe": probe}
    times = {"whole": 1 / STEPS, "data": 1 / STEPS, "fwd+bwd": 1.0, "rule": 1.0, "probe": 1 / objective.every}
    return actions, times, counted.count // STEPS


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=sorted(TASKS), default=sorted(TASKS))
    parser.add_argument("--copies", nargs="+", type=int, default=[4, 16, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(1)
    print(
        "| task | copies | inner steps / s | fwd+bwd | rule | data | probes | bookkeeping | ops / step "
        "| us / op |"
    )
    print("|---" * 10 + "|")
    for name in options.task:
        for copies in options.copies:
            actions, times, operations = parts(name, copies, device)
            measured = interleaved_seconds(actions, rounds=options.rounds, repeats=1, device=device)
            seconds = {part: measured[part] * times[part] for part in actions}
            whole = seconds.pop("whole")
            share = {part: 100 * value / whole for part, value in seconds.items()}
            print(
                f"| {name} | {copies} | {copies / whole:.0f} "
                f"| {share['fwd+bwd']:.0f} % | {share['rule']:.0f} % "
                f"| {share['data']:.1f} % | {share['probe']:.1f} % | {100 - sum(share.values()):.0f} % "
                f"| {operations} | {1e6 * whole / operations:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
