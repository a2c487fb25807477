"""Distribution: how the parameters of an optimizer lie on the ranks, and the way from DTensors to slices.

Only this file and its callers know of DTensor; the rule sees plain tensors and a `Holding`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.distributed.tensor import Shard as ShardPlacement

from nfopt.errors import OptimizerError
from nfopt.optim.directions import MomentumRates
from nfopt.optim.sharded import Sharded
from nfopt.optim.sharded_statistics import Shard
from nfopt.weightspace.incidence import MatrixLayout

COMPOSABLE_STATE = "__composable_api_state_key"  # fully_shard's state in a module, which cannot be copied


@dataclass(frozen=True, eq=False)
class Distribution:
    """The ranks that one step concerns.

    Attributes:
        group: the ranks among which parameters are cut or the work is shared; None: this process alone.
    """

    group: dist.ProcessGroup | None

    @classmethod
    def of(cls, params: Iterable[Tensor], share_work: bool = False) -> "Distribution":
        """Return how parameters lie on the ranks.

        Args:
            params: parameters, DTensors or plain ones.
            share_work: whether the ranks of the default group, which all have the same plain parameters and
                gradients, share the work.

        Raises:
            OptimizerError: a parameter is cut along two dimensions of its mesh, into strided slices or into
                summands, or two parameters among different ranks.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return cls(None)
        found: dict[tuple[int, ...], dist.ProcessGroup] = {}
        for param in params:
            cut = _cut_of(param)
            if cut is not None:
                group = param.device_mesh.get_group(cut[0])  # pyright: ignore[reportAttributeAccessIssue]
                found[tuple(dist.get_process_group_ranks(group))] = group
        if len(found) > 1:
            raise OptimizerError(
                f"the parameters are sharded among different ranks ({', '.join(map(str, found))}); "
                "use one mesh, or one NFOptimizer for the parameters of each."
            )
        if not found and share_work and dist.get_world_size() > 1:
            return cls(dist.group.WORLD)
        return cls(next(iter(found.values()), None))

    def local(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what this process has of the tensors, sharing their memory."""
        if not (dist.is_available() and dist.is_initialized()):
            return dict(tensors)
        return {name: to_local(tensor) for name, tensor in tensors.items()}

    def with_gradient(self, params: Sequence[Tensor]) -> list[bool]:
        """Return which parameters have a gradient on any rank; every rank has to call this.

        A rank that has none takes it for zero, as DistributedDataParallel does. This is the first that ranks
        say to each other in a step: where one of them is gone, the step ends here and has changed nothing.

        Raises:
            OptimizerError: another rank does not answer.
        """
        present = [param.grad is not None for param in params]
        if self.group is None:
            return present
        # On the host if a backend for it is there, so that no step waits for the device.
        on_host = "cpu" in dist.get_backend_config(self.group)
        flags = torch.tensor(present, dtype=torch.int32, device="cpu" if on_host else params[0].device)
        try:
            dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.group)
        except RuntimeError as error:
            raise OptimizerError(
                f"a rank of the {dist.get_world_size(self.group)} that train together does not answer; this "
                "step changed nothing. Start again from the last checkpoint; another number of ranks will do."
            ) from error
        return [bool(flag) for flag in flags.tolist()]

    def holding(
        self,
        layouts: Sequence[MatrixLayout],
        params: Sequence[Tensor],
        rates: MomentumRates,
        matrices: tuple[int, ...],
        products: torch.dtype | None = None,
    ) -> Sharded | None:
        """Return what this process has of the parameters; None: everything.

        Args:
            layouts: of the whole parameters.
            params: the parameters, DTensors or plain ones.
            rates: the momenta's decay rates.
            matrices: positions of those that are orthogonalised.
            products: dtype of the matrix products that orthogonalise; None: that of the arithmetic.

        Raises:
            OptimizerError: slices are not those of `torch.chunk`.
        """
        if self.group is None:
            return None
        ranks = dist.get_world_size(self.group)
        rank = dist.get_rank(self.group)
        shards: list[Shard | None] = []
        for param in params:
            cut = _cut_of(param)
            shard = None if cut is None else Shard.even(cut[1], param.shape[cut[1]], ranks)
            if shard is not None and to_local(param).shape[shard.dim] != shard.lengths[rank]:
                raise OptimizerError(
                    f"a parameter of shape {tuple(param.shape)} is sharded unevenly in a way that nfopt does "
                    f"not know: this rank has {tuple(to_local(param).shape)}. Shard with fully_shard."
                )
            shards.append(shard)
        return Sharded(tuple(layouts), tuple(shards), self.group, rates, matrices, products)


def to_local(tensor: Tensor) -> Tensor:
    """Return what this process has of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_gradient(param: Tensor) -> Tensor:
    """Return this process's part of a dense gradient, cut as its parameter; zeros where it has none."""
    grad = param.grad
    if grad is None:
        return torch.zeros_like(to_local(param))
    if isinstance(grad, DTensor) and isinstance(param, DTensor) and grad.placements != param.placements:
        grad = grad.redistribute(param.device_mesh, param.placements)
    grad = to_local(grad)
    return grad.to_dense() if grad.is_sparse else grad


def like_parameter(value: Tensor, param: Tensor) -> Tensor:
    """Return a slice as the DTensor that it is a part of, with the placement of its parameter."""
    if not isinstance(param, DTensor):
        return value
    return DTensor.from_local(
        value, param.device_mesh, param.placements, run_check=False, shape=param.shape, stride=param.stride()
    )


def placed_like(value: Tensor, param: Tensor) -> Tensor:
    """Return a tensor placed as a parameter: a whole one is cut, a DTensor moved where it has to."""
    if isinstance(value, DTensor) and isinstance(param, DTensor) and value.placements == param.placements:
        return value
    if not isinstance(param, DTensor):
        return value.full_tensor() if isinstance(value, DTensor) else value
    if isinstance(value, DTensor):
        return value.redistribute(param.device_mesh, param.placements)
    return distribute_tensor(value, param.device_mesh, param.placements, src_data_rank=None)


@contextmanager
def as_unsharded(model: nn.Module) -> Iterator[None]:
    """Let the modules that `fully_shard` has taken over be of their own classes, for a copy to be made."""
    if not (dist.is_available() and dist.is_initialized()):
        yield
        return
    taken = {module: type(module) for module in model.modules() if isinstance(module, FSDPModule)}
    kept: dict[nn.Module, dict[str, Any]] = {module: {} for module in taken}
    try:
        for module, kind in taken.items():
            module.__class__ = kind.__mro__[2]  # behind the wrapper's class and FSDPModule
            for key in [key for key in module.__dict__ if key.startswith(COMPOSABLE_STATE)]:
                kept[module][key] = module.__dict__.pop(key)
        yield
    finally:
        for module, kind in taken.items():
            module.__class__ = kind
            module.__dict__.update(kept[module])


def _cut_of(param: Tensor) -> tuple[int, int] | None:
    """Return mesh dimension and tensor dimension of a parameter's cut; None when all ranks have all of it."""
    if not isinstance(param, DTensor):
        return None
    cuts = [(i, p) for i, p in enumerate(param.placements) if not isinstance(p, Replicate)]
    if len(cuts) > 1 or any(type(p) is not ShardPlacement for _, p in cuts):
        raise OptimizerError(
            f"a parameter of shape {tuple(param.shape)} has the placements {param.placements}; NFOptimizer "
            "takes what is sharded along one dimension of its mesh (fully_shard), or replicated."
        )
    return next(((i, p.dim % param.dim()) for i, p in cuts if isinstance(p, ShardPlacement)), None)
