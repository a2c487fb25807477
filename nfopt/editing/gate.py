"""The acceptance gate: checks that an edit must pass before it is applied, most without target labels."""

import math
from dataclasses import dataclass

from nfopt.editing.evidence import OWN_STATISTICS, Answers, Evidence
from nfopt.editing.history import Check
from nfopt.errors import EditingError

FAILED_NUMBERS = "the edited model gives logits that are not finite"


@dataclass(frozen=True)
class Gate:
    """Bounds on what an edit may do; a bound of None leaves its check away.

    Attributes:
        max_source_drop: the accuracy on kept source images may fall by that much, in [0, 1]. Statistics of
            another domain cost the source much, and rightly so: the default forbids ruin alone.
        max_knowledge_drop: the same, with the statistics of BatchNorm measured on the source images: what
            the weights alone have forgotten. Nets without BatchNorm have no such check.
        min_class_share: the edited model must predict at least that share of the base's effective number of
            classes, on the target and on kept source images: below, predictions collapse.
        max_confidence_drop: the mean confidence on the target may fall by that much, in [0, 1].
        max_logit_factor: the RMS of the target's logits may grow or shrink by that factor.
        max_weight_change: the RMS change of each weight of two or more axes, over its RMS.
        min_target_gain: the least gain of accuracy on labelled target images that the edit was not made from.
        one_class: refuse where the base, without BatchNorm, puts at least that share of the target into one
            class with at least `sure` mean confidence: one class is no domain.
        max_deep_shift: refuse where the edit moves the means of the last BatchNorm layer by more deviations
            (RMS over channels) and the base was `sure`: the images show one class, or too few to measure by.
            A base that a corruption confuses puts all into one class too, but does not move those means.
        max_target_shift: the same for what the images alone would move them by, whatever the edit took of it,
            less what the draw of few images explains (`Evidence.target_shift`): the images show few classes.
        sure: mean confidence of the base on the target from which it is taken to know what it sees.
    """

    max_source_drop: float | None = 0.5
    max_knowledge_drop: float | None = 0.05
    min_class_share: float | None = 0.5
    max_confidence_drop: float | None = 0.2
    max_logit_factor: float | None = 5.0
    max_weight_change: float | None = 1.0
    min_target_gain: float | None = 0.0
    one_class: float | None = 0.9
    max_deep_shift: float | None = 0.3
    max_target_shift: float | None = 0.25
    sure: float = 0.7

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise EditingError(f"{name} of the gate is {value}; give a number, or None to leave it away.")

    def accepts(self, evidence: Evidence) -> bool:
        """Return whether no check fails."""
        return not any(check.passed is False for check in self.judge(evidence))

    def judge(self, evidence: Evidence) -> tuple[Check, ...]:
        """Return every check with its outcome; the edit is accepted if none of them failed."""
        finite = all(said.finite for said in evidence.after.values())
        finite = finite and all(math.isfinite(change) for change in evidence.changes.values())
        first = Check("finite", finite, "all numbers are finite" if finite else FAILED_NUMBERS)
        if not finite:
            return (first,)
        checks = (
            self._several_classes(evidence),
            self._collapse("target", evidence),
            self._collapse("source", evidence),
            self._confidence(evidence),
            self._logits(evidence),
            self._weights(evidence),
            self._source(evidence),
            self._knowledge(evidence),
            self._target(evidence),
        )
        return (first, *(check for check in checks if check is not None))

    def _several_classes(self, evidence: Evidence) -> Check | None:
        before = evidence.before["target"]
        if evidence.deep_shift is None:
            if self.one_class is None:
                return None
            few = before.top_share >= self.one_class
            says = f"the unedited model puts {before.top_share:.0%} of the target images into one class, with"
        else:
            shifts = [
                (how, shift, bound)
                for how, shift, bound in (
                    ("by the edit", evidence.deep_shift, self.max_deep_shift),
                    ("by the images", evidence.target_shift, self.max_target_shift),
                )
                if shift is not None and bound is not None
            ]
            if not shifts:
                return None
            few = any(shift > bound for _, shift, bound in shifts)
            moves = ", ".join(f"{how} {shift:.2f} ({bound:g} is allowed)" for how, shift, bound in shifts)
            says = (
                f"the means of the last BatchNorm layer move, in deviations, {moves}; the unedited model has"
            )
        one = few and before.confidence >= self.sure
        says += f" a mean confidence of {before.confidence:.2f} (bounds hold from {self.sure:g} on)"
        if one:
            says += ": they look like images of one class or few, or are too few; give some of every class"
        return Check("several classes", not one, says)

    def _collapse(self, name: str, evidence: Evidence) -> Check | None:
        if self.min_class_share is None or name not in evidence.before:
            return None
        before, after = (said[name].effective_classes for said in (evidence.before, evidence.after))
        return Check(
            f"no collapse on the {name}",
            after >= self.min_class_share * before,
            f"predictions on the {name} spread over {after:.1f} classes, over {before:.1f} before "
            f"(at least {self.min_class_share:.0%} of that is asked for)",
        )

    def _confidence(self, evidence: Evidence) -> Check | None:
        if self.max_confidence_drop is None:
            return None
        before, after = evidence.before["target"].confidence, evidence.after["target"].confidence
        return Check(
            "confidence",
            before - after <= self.max_confidence_drop,
            f"the mean confidence on the target is {after:.2f}, {before:.2f} before "
            f"(a fall of {self.max_confidence_drop:g} is allowed)",
        )

    def _logits(self, evidence: Evidence) -> Check | None:
        if self.max_logit_factor is None:
            return None
        before, after = evidence.before["target"].logit_rms, evidence.after["target"].logit_rms
        factor = after / before if before > 0 else math.inf if after > 0 else 1.0
        return Check(
            "scale of the logits",
            1 / self.max_logit_factor <= factor <= self.max_logit_factor,
            f"the logits of the target changed their RMS by a factor of {factor:.3g} "
            f"(up to {self.max_logit_factor:g} either way is allowed)",
        )

    def _weights(self, evidence: Evidence) -> Check | None:
        if self.max_weight_change is None:
            return None
        changes = evidence.weight_changes
        name = max(changes, key=lambda key: changes[key], default=None)
        if name is None:
            return Check("change of the weights", True, "no weight of two or more axes changed")
        return Check(
            "change of the weights",
            changes[name] <= self.max_weight_change,
            f"the largest change of a weight is {changes[name]:.3g} of its RMS, at {name} "
            f"({self.max_weight_change:g} is allowed)",
        )

    def _source(self, evidence: Evidence) -> Check | None:
        pair = _accuracies("source", evidence)
        if self.max_source_drop is None:
            return None
        if pair is None:
            return Check("accuracy on the source", None, "no kept source images were given")
        before, after = pair
        return Check(
            "accuracy on the source",
            before - after <= self.max_source_drop,
            f"the accuracy on kept source images is {after:.1%}, {before:.1%} before "
            f"(a fall of {self.max_source_drop:.1%} is allowed)",
        )

    def _knowledge(self, evidence: Evidence) -> Check | None:
        pair = _accuracies(OWN_STATISTICS, evidence)
        if self.max_knowledge_drop is None or pair is None:
            return None
        before, after = pair
        return Check(
            "knowledge of the source",
            before - after <= self.max_knowledge_drop,
            f"with statistics of its own the accuracy on kept source images is {after:.1%}, {before:.1%} "
            f"before (a fall of {self.max_knowledge_drop:.1%} is allowed)",
        )

    def _target(self, evidence: Evidence) -> Check | None:
        if self.min_target_gain is None:
            return None
        pair = _accuracies("held_out", evidence)
        if pair is None:
            return Check(
                "accuracy on the target", None, "no labelled target images were held out from the edit"
            )
        before, after = pair
        return Check(
            "accuracy on the target",
            after - before >= self.min_target_gain,
            f"the accuracy on held-out target images is {after:.1%}, {before:.1%} before "
            f"(a gain of {self.min_target_gain:.1%} is asked for)",
        )


def _accuracies(name: str, evidence: Evidence) -> tuple[float, float] | None:
    sides: list[Answers | None] = [said.get(name) for said in (evidence.before, evidence.after)]
    found = [side.accuracy for side in sides if side is not None and side.accuracy is not None]
    return (found[0], found[1]) if len(found) == 2 else None
