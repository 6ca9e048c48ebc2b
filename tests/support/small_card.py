"""The real core on a card that is too small for its plan, and that dies in its first process.

``python small_card.py PLAN TOKENS STEP``: memory runs out for micro-batches of more than TOKENS tokens; the process is
gone once STEP is written down, unless it went on from a checkpoint.
"""

import os
import sys
from typing import Any


def main(plan: str, tokens: int, step: int) -> int:
    """The core's own exit code, where it does not die."""
    import torch

    from qlora_core.__main__ import main as core
    from qlora_core.backends.packed_loss import PackedLoss
    from qlora_core.session.event_log import EventLog
    from qlora_profiles import events

    loss_sum, write, resumed = PackedLoss.__call__, EventLog.write, []

    def computed(self: PackedLoss, packed: Any) -> torch.Tensor:
        if packed.num_tokens > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss_sum(self, packed)

    def written(self: EventLog, kind: Any, **fields: Any) -> None:
        write(self, kind, **fields)
        if kind is events.RunEvent and fields["resumed_from"]:
            resumed.append(True)
        if kind is events.StepEvent and fields["step"] == step and not resumed:
            os._exit(77)

    PackedLoss.__call__, EventLog.write = computed, written  # type: ignore[method-assign]
    return core([plan, "--supervised"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
