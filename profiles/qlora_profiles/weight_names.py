"""What names of weights tell: how they were saved, where that was not as the model itself, and what they belong to."""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

from qlora_profiles.architectures import Architecture

AGAIN = "download it again"
NOT_ONE_MODEL = "config.json and weights of the same model, downloaded again"
EXTRA_LAYERS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")
"""A config's names of layers after the last that only guess further tokens; nobody needs them here."""
BESIDE_TEXT = ("multi_modal", "mtp")
SHOWN = 3


class SavedAs(NamedTuple):
    """What a mark in a name means, and what makes a model of it."""

    mark: str
    meaning: str
    fix: str


_UNWRAPPED = "save the model inside of the wrapper: its own save_pretrained"
_MERGED = "save what merge_and_unload() returns, or name the base and keep the adapter apart"
MARKS = (
    SavedAs("lora_A", "a model with an adapter on, not merged", _MERGED),
    SavedAs("lora_B", "a model with an adapter on, not merged", _MERGED),
    SavedAs("lora_embedding_A", "a model with an adapter on, not merged", _MERGED),
    SavedAs("base_layer", "a model with an adapter on, not merged", _MERGED),
    SavedAs("modules_to_save", "a model with an adapter on, not merged", _MERGED),
    SavedAs("base_model", "PEFT's wrapper around a model", _MERGED),
    SavedAs("_orig_mod", "a compiled model (torch.compile)", "save the model's _orig_mod with its own save_pretrained"),
    SavedAs("_fsdp_wrapped_module", "FSDP's wrapper around a model", _UNWRAPPED),
    SavedAs("_checkpoint_wrapped_module", "a wrapper that recomputes activations", _UNWRAPPED),
    SavedAs("_forward_module", "a wrapper of Lightning Fabric", _UNWRAPPED),
    SavedAs("_flat_param", "the flat shards of FSDP", _UNWRAPPED),
)
"""Parts of names, between dots, that no model of its own has; those that say most come first."""
FIRST_MARKS = (
    SavedAs("module", "a data-parallel wrapper (DDP, DeepSpeed)", _UNWRAPPED),
    *(SavedAs(name, "a model as a part of another", _UNWRAPPED) for name in ("student", "teacher", "policy", "actor")),
    *(SavedAs(name, "a model as a part of another", _UNWRAPPED) for name in ("ema", "ema_model", "pretrained_model")),
    SavedAs("state_dict", "a training checkpoint", _UNWRAPPED),
    SavedAs("_module", "a wrapper around a model", _UNWRAPPED),
)
"""The same, where they begin the names of weights."""


def saved_as(names: Iterable[str]) -> tuple[str, SavedAs] | None:
    """The first name with a mark in it and what that means, or ``None`` where all are names of a model's own."""
    found = [(name, mark) for name in names if (mark := _mark_of(name.split("."))) is not None]
    return min(found, key=lambda pair: _order(pair[1]), default=None)


def _mark_of(parts: list[str]) -> SavedAs | None:
    first = [mark for mark in FIRST_MARKS if parts[0] == mark.mark]
    doubled = SavedAs("model.model", "a model as a part of another", _UNWRAPPED)
    if parts[:2] == ["model", "model"]:
        first.append(doubled)
    return next((mark for mark in MARKS if mark.mark in parts), next(iter(first), None))


def _order(mark: SavedAs) -> int:
    return MARKS.index(mark) if mark in MARKS else len(MARKS)


def counted(names: Sequence[str]) -> str:
    """How many names there are, and the first of them."""
    shown = ", ".join(names[:SHOWN])
    return f"{len(names)} {'weight' if len(names) == 1 else 'weights'} ({shown}{', ...' if len(names) > SHOWN else ''})"


def sides(shape: Collection[int]) -> str:
    """A shape in words: ``4096 x 1024``."""
    return " x ".join(map(str, shape))


def is_beside_text(name: str, family: Architecture) -> bool:
    """Whether a weight belongs to a part that no text passes."""
    return any(part in name for part in (*family.beside_text, *BESIDE_TEXT))


def extra_layers(get: Callable[[str], Any]) -> int:
    """How many layers follow the last that text passes; ``get`` asks the config for a value."""
    return next((count for name in EXTRA_LAYERS if isinstance(count := get(name), int) and count), 0)
