"""A second backend, as a third party would write one: each sequence alone through the model's own forward."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from qlora_core.backends.peft.backend import PeftBackend
from qlora_core.backends.protocol import Loaded
from qlora_core.execution.limits import Limits
from qlora_core.model.packing import Packed
from qlora_profiles.hardware import HardwareReport
from qlora_profiles.plan import RunPlan


class SeparateScorer:
    """No packing, no kernel of ours: sequences one by one, all logits."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def _losses(self, packed: Packed) -> Iterator[Tensor]:
        for start, end in zip(packed.boundaries[:-1].tolist(), packed.boundaries[1:].tolist(), strict=True):
            logits = self.model(input_ids=packed.input_ids[:, start:end], use_cache=False).logits[0]
            inside = (packed.supervised_at >= start) & (packed.supervised_at < end)
            yield cross_entropy(logits[packed.supervised_at[inside] - start], packed.targets[inside], reduction="none")

    def __call__(self, packed: Packed) -> Tensor:
        return torch.cat(list(self._losses(packed))).sum()

    @torch.no_grad()
    def token_losses(self, packed: Packed) -> Tensor:
        return torch.cat(list(self._losses(packed)))


class SeparateBackend:
    """Loads as the plain backend does, recomputes nothing, computes the loss in its own way."""

    name = "separate"

    def supported(self, report: HardwareReport) -> str | None:
        return "a card is not for it" if report.gpus else None

    def prepare(self, plan: RunPlan) -> None:
        pass

    def load(self, plan: RunPlan, warn: Callable[[str], None]) -> Loaded:
        warn("this is the separate backend")
        return PeftBackend().load(plan, warn)

    def num_layers(self, loaded: Loaded) -> int:
        return 0

    def apply(self, loaded: Loaded, limits: Limits) -> SeparateScorer:
        return SeparateScorer(loaded.model)
