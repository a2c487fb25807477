"""Checks of the update directions against what is known of them; each fails on a broken implementation."""

from collections.abc import Callable

import torch
from pytorch_optimizer import SOAP
from torch import Tensor, nn
from torch.nn import functional

from nfopt.data import ImageData, Split
from nfopt.optim.directions import unit_rms
from tests.benchmarks.direction_contest import Averaging, Contestant, Shell, gradients
from tests.benchmarks.direction_rules import (
    Direction,
    LayerSignals,
    Mixed,
    Orthogonal,
    Preconditioned,
    Raw,
    RowNormalised,
    Sign,
    Soap,
    damped_power,
)
from tests.benchmarks.direction_tasks import Cnn, Mlp, Problem

COPIES, ROWS, COLUMNS = 2, 5, 7


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _far(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def _white(count: int, width: int) -> Tensor:
    """Return rows whose second moments are exactly the identity."""
    return torch.linalg.qr(_random(COPIES, count, width))[0] * count**0.5


def kfac_of_white_signals_is_momentum() -> float:
    direction = Preconditioned(-1, -1, 0.3, of_signals=True)
    momentum = _random(COPIES, ROWS, COLUMNS)
    signals = LayerSignals(_white(11, COLUMNS), _white(11, ROWS))
    return _far(unit_rms(direction(momentum, momentum, 1, signals), 2), unit_rms(momentum, 2))


def kfac_solves_the_kronecker_system() -> float:
    """(A kron S) vec(d) = vec(m), the damped factors written out; column-major vec."""
    signals = LayerSignals(_random(1, 11, COLUMNS), _random(1, 11, ROWS, seed=1))
    momentum = _random(1, ROWS, COLUMNS, seed=2)
    found = Preconditioned(-1, -1, 0.3, of_signals=True)(momentum, momentum, 1, signals)[0]
    factors = []
    for rows in (signals.inputs[0], signals.outputs[0]):
        second = rows.T @ rows / len(rows)
        factors.append(second + 0.3 * second.trace() / len(second) * torch.eye(len(second)).double())
    oracle = torch.linalg.solve(torch.kron(*factors), momentum[0].T.flatten())
    return _far(found.T.flatten(), oracle)


def whitening_makes_inputs_white() -> float:
    rows = _random(COPIES, 11, COLUMNS)
    second = rows.mT @ rows / 11
    root = damped_power(second, -0.5, 0.0)
    return _far(root @ second @ root, torch.eye(COLUMNS).double().expand(COPIES, -1, -1))


def shampoo_of_one_gradient_is_its_polar_factor() -> float:
    grad = _random(COPIES, ROWS, ROWS)
    u, _, v = torch.linalg.svd(grad)
    return _far(Preconditioned(-0.25, -0.25, 0.0, of_signals=False)(grad, grad, 1, None), u @ v)


def soap_with_identity_bases_is_adam() -> float:
    weight = nn.Parameter(torch.zeros(ROWS, COLUMNS, dtype=torch.float64))
    adam = torch.optim.Adam([weight], lr=1.0, betas=(0.95, 0.95), eps=1e-30)
    soap = Soap(epsilon=1e-30, refresh=10**6)
    soap(_random(1, ROWS, COLUMNS), _random(1, ROWS, COLUMNS), 1, None)
    soap.bases = torch.eye(ROWS).double()[None], torch.eye(COLUMNS).double()[None]
    slow, total = torch.zeros(1, ROWS, COLUMNS).double(), torch.zeros(1, ROWS, COLUMNS).double()
    for step in range(1, 30):
        grad = _random(1, ROWS, COLUMNS, seed=step)
        slow = 0.95 * slow + 0.05 * grad
        total -= soap(slow / (1 - 0.95**step), grad, step, None)
        weight.grad = grad[0]
        adam.step()
    return _far(total[0], weight.detach())


def soap_is_the_librarys() -> float:
    """35 steps with three refreshes, over which rows swap places in size; the library's QR is in float32."""
    weight = nn.Parameter(torch.zeros(ROWS, COLUMNS, dtype=torch.float64))
    library = SOAP([weight], lr=1.0, betas=(0.95, 0.95), weight_decay=0.0, precondition_frequency=10)
    soap = Soap()
    scales = torch.linspace(0.1, 3, ROWS, dtype=torch.float64)[:, None]
    slow, total = torch.zeros(1, ROWS, COLUMNS).double(), torch.zeros(1, ROWS, COLUMNS).double()
    for step in range(36):
        grad = _random(1, ROWS, COLUMNS, seed=step) * (scales if step < 15 else scales.flip(0))
        slow = slow if step == 0 else 0.95 * slow + 0.05 * grad
        total -= soap(slow / (1 - 0.95 ** max(step, 1)), grad, step + 1, None)
        weight.grad = grad[0]
        library.step()
    return _far(total[0], weight.detach())


def directions_commute_with_permutations() -> float:
    """Renumbering rows and columns renumbers the direction, after 12 steps of state.

    SOAP only for square matrices: the first gradient of another leaves a null space without a basis of its
    own.
    """
    makes: tuple[tuple[Callable[[], Direction], int], ...] = (
        (Orthogonal, COLUMNS),
        (Sign, COLUMNS),
        (RowNormalised, COLUMNS),
        (Soap, ROWS),
        (lambda: Preconditioned(-0.25, -0.25, 0.01, of_signals=False), COLUMNS),
        (lambda: Preconditioned(-1, -1, 0.3, of_signals=True), COLUMNS),
        (lambda: Preconditioned(0, -0.5, 0.1, of_signals=True, orthogonal=True), COLUMNS),
    )
    rows = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))

    def last(make_permuted: bool, direction: Direction, width: int) -> Tensor:
        columns = torch.randperm(width, generator=torch.Generator().manual_seed(2))
        turned = torch.zeros(())
        for step in range(1, 13):
            grad = _random(COPIES, ROWS, width, seed=step)
            signals = LayerSignals(
                _random(COPIES, 11, width, seed=100 + step), _random(COPIES, 11, ROWS, seed=200 + step)
            )
            if make_permuted:
                grad = grad[:, rows][:, :, columns]
                signals = LayerSignals(signals.inputs[..., columns], signals.outputs[..., rows])
            turned = direction(grad, grad, step, signals)
        return turned if make_permuted else turned[:, rows][:, :, columns]

    return max(_far(last(True, make(), width), last(False, make(), width)) for make, width in makes)


def mixing_nothing_changes_nothing() -> float:
    grad = _random(COPIES, ROWS, COLUMNS)
    return _far(Mixed(Orthogonal(), Raw(), 0.0)(grad, grad, 1, None), Orthogonal()(grad, grad, 1, None))


def averaging_with_equal_weights_is_the_mean() -> float:
    """With power 0, x_t is the mean of z_1 ... z_t."""
    entrant = Contestant("averaged", Raw, averaging=Averaging(at=0.3, power=0.0, decay=True))
    tiny = _tiny(Mlp((COLUMNS, ROWS, 3)), (1, 1, COLUMNS))
    params = tiny.net.init((0, 1))
    shell, past = Shell(entrant, tiny, 1.0), []
    for step in range(1, 6):
        grads = {name: torch.randn(p.shape) for name, p in params.items()}
        updates = shell.update(params, grads, step, {})
        params = {name: p + updates[name] for name, p in params.items()}
        past.append(shell.moving["0.weight"])
    mean = torch.stack(past).mean(0)
    held = torch.lerp(mean, past[-1], 0.3)
    return max(
        _far(shell.evaluated(params)["0.weight"], mean),
        _far(params["0.weight"], held),
    )


def _tiny(net: Mlp | Cnn, image: tuple[int, int, int]) -> Problem:
    split = Split(torch.randn(13, *image), torch.arange(13) % 3)
    return Problem(net, ImageData("random", split, split, split, 3), 13, 10)


def _gradient_from_signals(net: Mlp | Cnn, image: tuple[int, int, int]) -> float:
    """A matrix's gradient is the sum of its signals' outer products."""
    tiny = _tiny(net, image)
    params = net.init((0, 1))
    images = torch.randn(2, 13, *image)
    labels = torch.randint(3, (2, 13))
    grads, signals, _ = gradients(tiny, params, (images, labels), True)
    products = {n: s.outputs.mT @ s.inputs for n, s in signals.items()}
    return max(_far(products[name].reshape(grads[name].shape), grads[name]) for name in products)


def signals_of_the_mlp_make_its_gradients() -> float:
    return _gradient_from_signals(Mlp((COLUMNS, ROWS, 3)), (1, 1, COLUMNS))


def signals_of_the_cnn_make_its_gradients() -> float:
    return _gradient_from_signals(Cnn((3, 5, 7), 3), (3, 6, 6))


def copies_of_the_cnn_are_single_nets() -> float:
    net = Cnn((3, 5, 7), 3)
    params, images = net.init((0, 1)), torch.randn(2, 13, 3, 6, 6)
    x = images[1]
    for i in range(2):
        x = functional.conv2d(x, params[f"{i}.weight"][1], stride=1 + i, padding=1)
        x = functional.batch_norm(x, None, None, training=True).relu()
    oracle = functional.linear(x.mean((2, 3)), params["head.weight"][1], params["head.bias"][1])
    return _far(net(params, images)[1], oracle)


# Each check returns a relative error, which must stay below the number.
CHECKS = {
    kfac_of_white_signals_is_momentum: 1e-12,
    kfac_solves_the_kronecker_system: 1e-12,
    whitening_makes_inputs_white: 1e-10,
    shampoo_of_one_gradient_is_its_polar_factor: 1e-8,
    soap_with_identity_bases_is_adam: 1e-10,
    soap_is_the_librarys: 1e-4,
    directions_commute_with_permutations: 1e-8,
    mixing_nothing_changes_nothing: 1e-12,
    averaging_with_equal_weights_is_the_mean: 1e-5,
    signals_of_the_mlp_make_its_gradients: 1e-5,
    signals_of_the_cnn_make_its_gradients: 1e-5,
    copies_of_the_cnn_are_single_nets: 1e-5,
}


def run_checks() -> bool:
    """Print every check's relative error and limit; return whether all hold."""
    holds = True
    for check, limit in CHECKS.items():
        error = check()
        holds &= error < limit
        print(f"{'ok ' if error < limit else 'BAD'} {error:.1e} < {limit:.0e}  {check.__name__}")
    return holds
