"""nfopt in timm's registry of optimizers, and timm's own training script with `--opt nfopt`.

    python -m nfopt.optim.timm_registry train.py DATA --model resnet18 --opt nfopt --lr 1

runs a script of timm unchanged; `--sched none --opt-kwargs total_steps=9000` uses nfopt's own schedule.
"""

import runpy
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from timm.optim._optim_factory import OptimInfo, default_registry
from torch import nn

from nfopt.errors import OptimizerError
from nfopt.optim.nfoptimizer import NFOptimizer

NAME = "nfopt"
FACTORY = "nfopt.optim.timm_registry.timm_nfoptimizer"


def timm_nfoptimizer(params: Any, *, total_steps: int | None = None, **options: Any) -> NFOptimizer:
    """Return an NFOptimizer as timm's factory asks for it.

    Args:
        params: parameter groups, as timm makes them; their weight decay and learning rates are kept.
        total_steps: optimizer steps of the training; None, for timm's own schedulers: constant step size.
        options: further arguments of NFOptimizer. timm always gives `weight_decay`, 0 when nothing is said.

    Raises:
        OptimizerError: an option that NFOptimizer does not have, or as NFOptimizer raises.
    """
    known = (
        "lr",
        "weight_decay",
        "checkpoint",
        "model",
        "example_inputs",
        "share_work",
        "state_dtype",
        "matmul_dtype",
        "fused",
    )
    unknown = sorted(options.keys() - set(known))
    if unknown:
        raise OptimizerError(
            f"nfopt has no option {', '.join(unknown)}. Its options: total_steps, {', '.join(known)}."
        )
    return NFOptimizer(params, total_steps, **options)


def register_timm() -> None:
    """Enter nfopt in timm's registry: `timm.optim.create_optimizer_v2(model, opt="nfopt", lr=1.0)`.

    timm hands an optimizer parameter groups without their names; a model given to timm's factory is passed on
    to NFOptimizer, which takes names and symmetry from it. A factory called with parameters instead of the
    model needs `model=model`. A second call changes nothing.
    """
    if default_registry.list_optimizers(NAME):
        return
    default_registry.register(
        OptimInfo(
            name=NAME,
            opt_class=FACTORY,
            description="A learned optimizer that sees which neurons belong together; lr 1 is its own step",
            has_eps=False,
        )
    )
    default_registry.create_optimizer = _telling_the_model(default_registry.create_optimizer)


def _telling_the_model(create: Callable[..., Any]) -> Callable[..., Any]:
    # The registry turns a model into bare groups before any optimizer sees it: only here is it at hand.
    @wraps(create)
    def create_optimizer(model_or_params: Any, opt: str, *args: Any, **options: Any) -> Any:
        if opt.lower().split("_")[-1] == NAME and isinstance(model_or_params, nn.Module):
            options.setdefault("model", model_or_params)
        return create(model_or_params, opt, *args, **options)

    return create_optimizer


def _run_script(arguments: list[str]) -> None:
    """Run a Python script with nfopt registered."""
    if not arguments or not Path(arguments[0]).is_file():
        named = repr(arguments[0]) if arguments else "nothing"
        raise OptimizerError(
            f"the first argument is the script to run, such as timm's train.py, not {named}."
        )
    register_timm()
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    _run_script(sys.argv[1:])
