"""What a backend does; everything else is the same for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from qlora_core.execution.limits import Limits
    from qlora_core.model.packing import Packed
    from qlora_profiles.hardware import HardwareReport
    from qlora_profiles.plan import RunPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model ready to train: base loaded, adapters in float32, everything else frozen (or not, for full).

    ``model`` is what is saved and optimised.
    """

    model: Any


class Backend(Protocol):
    """How a model is loaded, and how a micro-batch becomes a loss.

    One instance serves one run; ``prepare`` and then ``load`` are called once, first.
    """

    name: str

    def supported(self, report: HardwareReport) -> str | None:
        """Why it cannot run on this machine, or ``None``."""

    def prepare(self, plan: RunPlan) -> None:
        """What must happen before transformers is imported; mostly nothing. Raises EnvironmentProblem: it cannot."""

    def load(self, plan: RunPlan, warn: Callable[[str], None]) -> Loaded:
        """Load the base and put the adapters on.

        Raises:
            UserError: the model or the recipe is not for this backend, or cannot be loaded.
            EnvironmentProblem: a package is missing.
        """

    def num_layers(self, loaded: Loaded) -> int:
        """Decoder layers that can recompute their activations."""

    def apply(self, loaded: Loaded, limits: Limits) -> LossFunction:
        """Compute within ``limits`` from now on, and hand out what turns a micro-batch into its loss."""


class LossFunction(Protocol):
    """The loss of a packed micro-batch's supervised tokens, in nats and float32."""

    def __call__(self, packed: Packed) -> Tensor:
        """Their sum (a scalar), differentiable in the trainable parameters."""

    def token_losses(self, packed: Packed) -> Tensor:
        """Each one's own (N), without gradient."""
