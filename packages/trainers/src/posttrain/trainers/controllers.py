"""What sets the coefficient of the KL penalty: a constant, or a controller that steers towards a target KL.

Both have `coef`, `update(kl)` after each step, and a state for resume. They know nothing of the policy.
"""

from typing import Protocol


class KLController(Protocol):
    """The coefficient β of the KL penalty, and how it follows the observed KL."""

    coef: float

    def update(self, kl: float) -> None: ...


class FixedKL:
    """β stays what it was set to."""

    def __init__(self, coef: float) -> None:
        self.coef = coef

    def update(self, kl: float) -> None:
        """Nothing: the coefficient is fixed."""


class AdaptiveKL:
    """Proportional control of log β towards a target KL (Ziegler et al. 2019, section 2.2).

    e = clip((KL − target) / target, −0.2, 0.2) and β ← β (1 + gain · e), with KL in nats a sequence; the paper's gain
    K_β is 0.1.
    """

    def __init__(self, coef: float, target: float, gain: float = 0.1) -> None:
        if not target > 0:
            raise ValueError(f"the target KL must be positive, not {target}")
        self.coef, self.target, self.gain = coef, target, gain

    def update(self, kl: float) -> None:
        """Moves β after a step whose mean KL a sequence was `kl`."""
        error = min(max((kl - self.target) / self.target, -0.2), 0.2)
        self.coef *= 1 + self.gain * error
