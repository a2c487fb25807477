"""Memory of an optimizer step beyond parameters, gradients and state: the peak of what it allocates.

    python -m tests.benchmarks.step_memory [--model resnet18 ...]

Prints bytes per parameter: the state's, and the peak of all tensors that live at once during one step and
did not live before it. Counted by tensor storages as they come and go, on the CPU.
"""

import argparse
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nfopt.optim import NFOptimizer
from tests.benchmarks.optimizer_step import MODELS, optimizers, state_bytes


class StorageCounter(TorchDispatchMode):
    """Counts the bytes of the storages that operations make while it is active, less those that go."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.seen: dict[int, int] = {}
        self.live, self.peak = 0, 0
        for tensor in known:
            self._count(tensor)
        self.live, self.peak = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count what it has made."""
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place in self.seen:
            return
        self.seen[place] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, place, size)

    def _gone(self, place: int, size: int) -> None:
        if self.seen.pop(place, None) is not None:
            self.live -= size


def measured(optimizer: torch.optim.Optimizer, model: nn.Module) -> tuple[float, float]:
    """Return the bytes per parameter of the state, and of the peak of one step beyond it."""
    optimizer.step()
    optimizer.step()
    state = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    params = list(model.parameters())
    counter = StorageCounter([*params, *(p.grad for p in params if p.grad is not None), *state])
    count = sum(p.numel() for p in params)
    step = optimizer.step
    while hasattr(step, "__wrapped__"):  # the profiler's record around it is no operation of ours
        step = step.__wrapped__
    del state, params
    with torch.no_grad(), counter:
        step(optimizer)
    return state_bytes(optimizer, count), counter.peak / count


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", choices=sorted(MODELS))
    chosen = parser.parse_args().model or ["fmnist-mlp", "resnet18"]
    print("| model | optimizer | state bytes/param | peak of a step beyond it |")
    print("|---|---|---|---|")
    for name in chosen:
        make, shape = MODELS[name]
        model = make()
        nn.functional.cross_entropy(model(torch.randn(2, *shape[1:])), torch.randint(10, (2,))).backward()
        halved = {"nfopt, bfloat16 state": NFOptimizer(model, 1000, state_dtype=torch.bfloat16)}
        for key, optimizer in {**optimizers(model), **halved}.items():
            state, peak = measured(optimizer, model)
            print(f"| {name} | {key} | {state:.1f} | {peak:.1f} |", flush=True)


if __name__ == "__main__":
    main()
