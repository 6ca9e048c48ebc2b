"""Which layers get an adapter."""

from collections.abc import Sequence

from qlora_profiles.architectures import architecture_of
from qlora_profiles.errors import UserError
from qlora_profiles.facts import LinearShape, ModelFacts
from qlora_profiles.suggest import hint

ALL_LINEAR = "all-linear"


def discover_targets(facts: ModelFacts, target_modules: Sequence[str]) -> list[LinearShape]:
    """The linear layers that ``target_modules`` names, in the layers' order; those of equal name and shape once.

    A name is the last part (``q_proj``) or any longer end of the path (``self_attn.q_proj``).

    Raises:
        UserError: a name that no layer has; lists those that exist.
    """
    if ALL_LINEAR in target_modules:
        family = architecture_of(facts.model_type)
        others = (*family.left_alone, *(family.never_adapted if facts.experts_per_token else ()))
        return [shape for shape in facts.linears if short_name(shape) not in others]
    for name in target_modules:
        if not any(_named(shape, name) for shape in facts.linears):
            known = list(dict.fromkeys(map(short_name, facts.linears)))
            raise UserError(
                f"target_modules: {facts.name} has no layer {name}{hint(name, known)}; it has {', '.join(known)}",
                f"--target-modules {ALL_LINEAR}",
            )
    return [shape for shape in facts.linears if any(_named(shape, name) for name in target_modules)]


def short_name(shape: LinearShape) -> str:
    """The last part of a layer's name: ``q_proj``."""
    return shape.name.rsplit(".", 1)[-1]


def _named(shape: LinearShape, name: str) -> bool:
    return f".{shape.name}".endswith(f".{name}")
