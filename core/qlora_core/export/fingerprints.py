"""What a model is, small enough to hand to another process: sums of its weights' bits, and a few of its logits.

Whoever writes a model and whoever reads it back take them alike. Nothing here but torch (and PEFT, for adapters).
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from msgspec import Struct
from torch import Tensor

from qlora_core.export.read_back import MOST_TOKENS

PIECE_WORDS = 2**20
"""Words summed at a time: what the product needs stays small."""
COLUMNS = 64
"""Places of the vocabulary whose logits are kept of each token."""


class Logits(Struct, frozen=True, kw_only=True):
    """Logits of a row: ``values`` (tokens x columns) at the vocabulary's places ``columns``, for the tokens ``ids``."""

    ids: list[int]
    columns: list[int]
    values: list[list[float]]


def logits_of(model: Any, ids: Sequence[int]) -> Logits:
    """The model's logits for the beginning of a row, as it computes them now."""
    short = list(ids[:MOST_TOKENS])
    device = model.get_input_embeddings().weight.device
    with torch.no_grad():
        found = model(input_ids=torch.tensor([short], device=device), use_cache=False).logits[0].float()
    places = torch.linspace(0, found.shape[1] - 1, COLUMNS).long().unique()
    return Logits(ids=short, columns=places.tolist(), values=found[:, places.to(device)].cpu().tolist())


def apart(found: Logits, wanted: Logits) -> float:
    """How far logits lie from those wanted, as a share of their length; what is added to all of a token's counts not.

    NaN where one of them is no number.
    """
    there = _centred(wanted)
    return float((_centred(found) - there).norm() / there.norm().clamp_min(1e-12))


def share_kept(found: Logits, wanted: Logits, before: Logits) -> float:
    """How much of the way from ``before`` to ``wanted`` was gone: 1 is all of it. Noise around it hardly counts."""
    way = _centred(wanted) - _centred(before)
    return float(((_centred(found) - _centred(before)) * way).sum() / way.square().sum().clamp_min(1e-30))


def _centred(logits: Logits) -> Tensor:
    values = torch.tensor(logits.values, dtype=torch.float64)
    return values - values.mean(1, keepdim=True)


def model_sums(model: Any) -> dict[str, str]:
    """A sum of the bits of each of a model's weights and buffers, by name."""
    return _sums(model.state_dict().items())


def adapter_sums(model: Any) -> dict[str, str]:
    """A sum of the bits of each of an adapter's weights, and each adapted layer's scale, by name."""
    from peft import get_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    layers = ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))
    return _sums(weights.items()) | {f"{name} (scale)": str(layer.scaling["default"]) for name, layer in layers}


def _sums(tensors: Iterable[tuple[str, Any]]) -> dict[str, str]:
    return {name: bit_sum(tensor) for name, tensor in tensors if isinstance(tensor, Tensor)}


def bit_sum(tensor: Tensor) -> str:
    """Shape, number format, and a sum of all bits in which every place weighs differently; the same on any device."""
    flat = tensor.detach().reshape(-1).view(torch.uint8)
    total = 0
    weights = torch.arange(1, 2 * PIECE_WORDS, 2, device=flat.device)
    for piece in flat.split(8 * PIECE_WORDS):
        words = _words(piece)
        total = (31 * total + int((words * weights[: len(words)]).sum())) % 2**64
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} {total:016x}"


def _words(piece: Tensor) -> Tensor:
    """Bytes as numbers of 64 bits; only those that no such number holds as they lie are copied."""
    if len(piece) % 8 or piece.storage_offset() % 8:
        whole = torch.zeros(-(-len(piece) // 8) * 8, dtype=torch.uint8, device=piece.device)
        whole[: len(piece)] = piece
        piece = whole
    return piece.view(torch.int64)


def differing(found: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """Names whose sums differ, or that only one of both has; in order."""
    return [name for name in dict.fromkeys(chain(wanted, found)) if found.get(name) != wanted.get(name)]
