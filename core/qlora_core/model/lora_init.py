"""First values of the adapters: from the recipe's seed and the layer's name alone.

PEFT draws them on whatever device and in whatever order a backend loads; the same recipe would then start
elsewhere on another machine.
"""

import hashlib
import math
from typing import Any

import torch

OUTER = "base_model.model."


@torch.no_grad()
def initialise(model: Any, seed: int) -> None:
    """Set every ``lora_A`` (r x I) to Kaiming-uniform values and every ``lora_B`` (O x r) to zero.

    As PEFT's ``reset_lora_parameters`` does: with its a = sqrt 5 the bound is 1 / sqrt(I).
    """
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            bound = 1.0 / math.sqrt(parameter.shape[1])
            values = torch.empty(parameter.shape, dtype=torch.float32)
            values.uniform_(-bound, bound, generator=_generator(seed, name.removeprefix(OUTER)))
            parameter.copy_(values)
        elif ".lora_B." in name:
            parameter.zero_()


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def trainable_params(model: Any) -> int:
    """Number of values that are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
