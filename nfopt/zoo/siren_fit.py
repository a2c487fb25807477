"""Fitting many SIRENs side by side: Adam on the whole signal until its error is small enough, then frozen.

A few nets at a time (`lanes`) are trained in memory that stays in the cache; a net that is done leaves its
lane to the next one. On a CPU several threads do so at once, each with lanes of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Lock

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nfopt.zoo.machine import Machine
from nfopt.zoo.siren import SirenConfig
from nfopt.zoo.siren_gradient import SirenGradient, aligned
from nfopt.zoo.threads import run_in_threads
from nfopt.zoo.zoo import ZooError

BETAS, EPSILON = (0.9, 0.999), 1e-8
HARVEST_EVERY = 8
CPU_LANES, GPU_LANES = 8, 2048
CPU_POINTS = 8 * 28 * 28
"""On a CPU there are more lanes where signals are short: so many points in all stay in the cache."""


@dataclass(frozen=True)
class FitConfig:
    """How a SIREN is fitted; the defaults are the protocol of DWSNets (Navon et al. 2023, appendix).

    Attributes:
        learning_rate: of Adam, with betas .9 and .999.
        max_steps: optimizer steps after which a net is done in any case.
        stop_psnr_db: peak signal-to-noise ratio in dB at which a net is done; None for never.
    """

    learning_rate: float = 5e-4
    max_steps: int = 1000
    stop_psnr_db: float | None = 40.0

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.max_steps < 0:
            raise ZooError(
                f"a fit needs a positive learning rate and no negative number of steps, not {self}."
            )


@dataclass(frozen=True, eq=False)
class Fitted:
    """What fitting came to, net by net.

    Attributes:
        flat: final parameters, in the order of `SirenConfig.shapes`.
        steps: optimizer steps that were taken.
        mse: mean squared error of the final parameters.
    """

    flat: Float[Tensor, "nets parameters"]
    steps: Int[Tensor, " nets"]
    mse: Float[Tensor, " nets"]


def psnr_db(mse: Tensor, peak: Tensor | float = 1.0) -> Tensor:
    """Return the peak signal-to-noise ratio 10 log10(peak^2 / mse) in dB; at most 200 (an error of zero)."""
    peak = torch.as_tensor(peak, dtype=mse.dtype, device=mse.device)
    return (20 * peak.log10() - 10 * mse.log10()).clamp(max=200.0)


def fit_sirens(
    config: SirenConfig,
    coordinates: Float[Tensor, "points inputs"],
    targets: Float[Tensor, "nets points"],
    start: Float[Tensor, "nets parameters"],
    fit: FitConfig,
    *,
    peak: Float[Tensor, " nets"] | None = None,
    grid_shape: tuple[int, int] | None = None,
    machine: Machine | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> Fitted:
    """Fit each net to its targets; what becomes of one does not depend on the others.

    Args:
        config: the architecture, of one output.
        coordinates: the points, the same for every net.
        targets: the values wanted there; their device is where the nets are fitted.
        start: initial parameters, in the order of `SirenConfig.shapes`.
        fit: learning rate and when to stop.
        peak: peak of each signal, for its signal-to-noise ratio; 1 without it.
        grid_shape: height and width, where the points are those of `grid(height, width)`; else None.
        machine: nets side by side (8 or more on a CPU, 2,048 on a GPU) and threads; its device must be that
            of the targets.
        report: hears how many nets are done, in one thread at a time.
    """
    machine = machine or Machine(targets.device)
    lanes = machine.lanes_or(cpu_lanes(targets.shape[1]), GPU_LANES)
    workers = min(machine.threads, -(-len(targets) // lanes))
    peak = targets.new_ones(len(targets)) if peak is None else peak
    enough = targets.new_zeros(len(targets))
    if fit.stop_psnr_db is not None:
        enough = peak.square() * 10 ** (-fit.stop_psnr_db / 10)
    results = Fitted(
        start.to(targets).clone(),
        torch.zeros(len(targets), dtype=torch.long, device=targets.device),
        targets.new_zeros(len(targets)),
    )
    queue = _Queue(len(targets), report)

    def work() -> None:
        engine = SirenGradient(config, coordinates.to(targets), lanes, grid_shape)
        Lanes(engine, targets, enough, fit, results).run(queue)

    if machine.on_cpu:
        run_in_threads([work] * workers, workers, queue.stop)
    else:
        work()
    return results


def cpu_lanes(points: int) -> int:
    """Return how many nets are fitted side by side on a CPU to signals of so many points."""
    return max(CPU_LANES, CPU_POINTS // points)


class _Queue:
    """The nets that wait, shared by threads."""

    def __init__(self, nets: int, report: Callable[[int], None]) -> None:
        self.stop = Event()
        self._lock = Lock()
        self._next, self._nets, self._done, self._report = 0, nets, 0, report

    def take(self, count: int) -> list[int]:
        """Return the next nets, `count` or as many as there are."""
        with self._lock:
            taken = list(range(self._next, min(self._next + count, self._nets)))
            self._next += len(taken)
            return [] if self.stop.is_set() else taken

    def finish(self, count: int) -> None:
        """Note that so many nets are done."""
        with self._lock:
            self._done += count
            self._report(self._done)


class Lanes:
    """Nets in training side by side. There are always as many, idle ones included.

    So the shapes of all products are the same however many nets there are, and with them their last digits.
    """

    def __init__(
        self, engine: SirenGradient, targets: Tensor, enough: Tensor, fit: FitConfig, results: Fitted
    ) -> None:
        self.engine, self.fit, self.results = engine, fit, results
        self.all_targets, self.all_enough = targets, enough
        lanes = engine.nets
        self.net = torch.full((lanes,), -1)
        count = results.flat.shape[1]
        self.flat, self.gradient = (aligned(lanes, count, targets) for _ in range(2))
        self.first, self.second, self.root = (aligned(lanes, count, targets) for _ in range(3))
        self.targets = targets.new_zeros(lanes, targets.shape[1])
        self.enough, self.mse = targets.new_zeros(lanes), targets.new_zeros(lanes)
        self.steps = torch.zeros(lanes, dtype=torch.long, device=targets.device)
        self.done = torch.ones(lanes, dtype=torch.bool, device=targets.device)

    def run(self, queue: _Queue) -> None:
        """Fit nets until none waits."""
        while not queue.stop.is_set():
            free = self.done.nonzero().flatten().tolist()
            if free:
                self._harvest([lane for lane in free if self.net[lane] >= 0], queue)
                self.fill(free, queue.take(len(free)))
            if bool((self.net < 0).all()):
                return
            for _ in range(HARVEST_EVERY):
                self.step()

    def step(self) -> None:
        """Take one optimizer step with every net that is not done."""
        mse = self.engine(self.flat, self.targets, self.gradient)
        # The error of a frozen net is that of its final parameters, computed anew.
        self.mse.copy_(mse)
        self.done |= (mse <= self.enough) | (self.steps >= self.fit.max_steps)
        going = ~self.done
        self.steps += going
        taken = self.steps.clamp(min=1).to(self.flat.dtype)
        beta_1, beta_2 = BETAS
        self.first.lerp_(self.gradient, 1 - beta_1)
        self.second.mul_(beta_2).addcmul_(self.gradient, self.gradient, value=1 - beta_2)
        torch.sqrt(self.second, out=self.root)
        self.root.div_((1 - beta_2**taken).sqrt().unsqueeze(1)).add_(EPSILON)
        rate = going.to(taken) * self.fit.learning_rate / (1 - beta_1**taken)
        torch.div(self.first, self.root, out=self.root)
        self.flat.addcmul_(self.root, rate.unsqueeze(1), value=-1)

    def _harvest(self, lanes: list[int], queue: _Queue) -> None:
        if not lanes:
            return
        nets = self.net[lanes].to(self.flat.device)
        self.results.flat[nets] = self.flat[lanes]
        self.results.steps[nets] = self.steps[lanes]
        self.results.mse[nets] = self.mse[lanes]
        self.net[lanes] = -1
        queue.finish(len(lanes))

    def fill(self, lanes: list[int], nets: list[int]) -> None:
        """Put nets into free lanes, as many as there are."""
        lanes = lanes[: len(nets)]
        if not lanes:
            return
        self.net[lanes] = torch.tensor(nets)
        self.flat[lanes] = self.results.flat[nets]
        self.targets[lanes] = self.all_targets[nets]
        self.enough[lanes] = self.all_enough[nets]
        for state in (self.first, self.second, self.steps, self.done):
            state[lanes] = 0
