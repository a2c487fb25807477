"""Checkpoints of the update rule: which network an optimizer runs, checked against its configuration."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from nfopt.checkpoints import Checkpoint, load_checkpoint
from nfopt.errors import CheckpointError
from nfopt.optim.directions import MomentumRates
from nfopt.optim.rule import LearnedUpdateRule, RuleConfig
from nfopt.symmetry import PermutationSpec

CHECKPOINT_KIND = "update-rule"
NOMINAL = "nominal"


def rule_checkpoint(
    theta: Mapping[str, Tensor], config: RuleConfig, card: Mapping[str, Any], name: str = "unsaved"
) -> Checkpoint:
    """Bundle a rule's weights and configuration for `nfopt.checkpoints.save_checkpoint`."""
    return Checkpoint(CHECKPOINT_KIND, dict(theta), asdict(config), card, name)


def read_rule(checkpoint: str | Checkpoint) -> tuple[RuleConfig, dict[str, Tensor], str]:
    """Return configuration, weights (empty for the nominal optimizer) and name of a rule.

    Args:
        checkpoint: a bundled checkpoint's name, "nominal", a path, or a checkpoint in memory.

    Raises:
        UnknownNameError: there is no checkpoint of that name.
        CheckpointError: the checkpoint is damaged, of another version, or not a rule's.
    """
    if checkpoint == NOMINAL:
        return RuleConfig(), {}, NOMINAL
    found = (
        checkpoint
        if isinstance(checkpoint, Checkpoint)
        else load_checkpoint(checkpoint, kind=CHECKPOINT_KIND)
    )
    config = config_from_json(found.config, found.name)
    probe = LearnedUpdateRule(PermutationSpec.uncoupled({"w": (3, 5)}), config).init_theta()
    expected = {name: tuple(value.shape) for name, value in probe.items()}
    given = {name: tuple(value.shape) for name, value in found.theta.items()}
    if expected != given:
        wrong = sorted(set(expected.items()) ^ set(given.items()))
        raise CheckpointError(f"the weights of {found.name} do not fit its configuration: {wrong[:4]}.")
    return config, dict(found.theta), found.name


def config_from_json(data: Mapping[str, Any], name: str) -> RuleConfig:
    """Rebuild a RuleConfig from a checkpoint's configuration.

    Raises:
        CheckpointError: a key is missing or unknown.
    """
    try:
        return RuleConfig(**{**data, "rates": MomentumRates(**data["rates"])})
    except (TypeError, KeyError) as error:
        raise CheckpointError(
            f"{name} was written for another version of the update rule ({error})."
        ) from error
