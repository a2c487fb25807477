"""Imitation: the mask network's ranking head learns which weights outlive iterative magnitude pruning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nfopt.errors import NfoptError
from nfopt.progress import Progress, ProgressCallback, silent
from nfopt.pruning.neural import MaskInputs, MaskNetwork, MaskProposal
from nfopt.seeds import generator
from nfopt.statefile import load_state, save_state

SAVE_EVERY = 25


@dataclass(frozen=True, eq=False)
class Ticket:
    """One net as the network sees it, with what became of its weights.

    Attributes:
        inputs: what the network reads.
        magnitudes: |w| at the start, by scored tensor.
        survived: rounds of pruning that each weight outlives, by scored tensor.
    """

    inputs: MaskInputs
    magnitudes: Mapping[str, Tensor]
    survived: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class ImitationConfig:
    """How the network imitates: AdamW, its learning rate falling to zero along a line.

    Attributes:
        steps: steps, of one net of each of several tasks.
        lr: learning rate of the first step.
        decay: pull of the ranking to zero, on its mean square.
        weight_decay: AdamW's, on the network's weights.
        seed: order of the nets.
    """

    steps: int = 300
    lr: float = 1e-2
    decay: float = 1e-3
    weight_decay: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.lr <= 0 or min(self.decay, self.weight_decay) < 0:
            raise NfoptError(f"imitation needs steps >= 1, lr > 0 and both decays >= 0, not {self}.")


def imitation_loss(proposal: MaskProposal, ticket: Ticket) -> Tensor:
    """Return how unlikely the survivors are under a proposal, in nats, beyond chance; 0 for chance.

    With s = log |w| + r, p = softmax(s) over a tensor, and K_k what outlives round k:

        mean over tensors and rounds k of  -mean_{K_k} log p - log n

    the Plackett-Luce likelihood of the first draw (Cao et al. 2007, "Learning to rank", section 4.2).
    """
    terms = []
    for name, survived in ticket.survived.items():
        score = (ticket.magnitudes[name].clamp(min=1e-12).log() + proposal.ranking[name]).flatten()
        log_p = score - score.logsumexp(0)
        rounds = survived.flatten()
        for number in range(1, int(rounds.max()) + 1):
            kept = rounds >= number
            terms.append(-log_p[kept].mean() - torch.tensor(float(kept.numel())).log())
    if not terms:
        raise NfoptError("a ticket in which no weight outlives a round has nothing to imitate.")
    return torch.stack(terms).mean()


def imitate(
    network: MaskNetwork,
    tickets: Mapping[str, Sequence[Ticket]],
    config: ImitationConfig,
    *,
    state_file: Path | None = None,
    progress: ProgressCallback = silent,
) -> list[float]:
    """Train the ranking head of `network` in place and return the loss of every step.

    Args:
        network: whose allocation head is left alone.
        tickets: nets by task; every step reads one net of every task, so that each task counts the same.
        config: steps and learning rate.
        state_file: where the unfinished state is kept; if it exists the training goes on from there.
        progress: hears how far it is.
    """
    learned = [p for p in network.ranking.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=config.lr, weight_decay=config.weight_decay)
    losses: list[float] = []
    if state_file is not None and state_file.is_file():
        state = load_state(state_file)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        losses = list(state["losses"])
    for step in range(len(losses), config.steps):
        draw = generator("imitation", config.seed, step)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (1 - step / config.steps)
        optimizer.zero_grad()
        total = 0.0
        for nets in tickets.values():
            ticket = nets[int(torch.randint(len(nets), (), generator=draw))]
            proposal = network(ticket.inputs)
            size = torch.stack([r.square().mean() for r in proposal.ranking.values()]).mean()
            loss = (imitation_loss(proposal, ticket) + config.decay * size) / len(tickets)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        losses.append(total)
        if state_file is not None and len(losses) % SAVE_EVERY == 0:
            state = {"network": dict(network.state_dict()), "optimizer": optimizer.state_dict()}
            save_state(state_file, {**state, "losses": losses})
        progress(Progress("imitate", step + 1, config.steps, f"loss {total:.3f}"))
    return losses
