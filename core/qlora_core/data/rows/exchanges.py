"""A question and its answer held together: in a list of messages, or as history."""

from collections.abc import Mapping
from typing import Any

from qlora_core.data.schema import ROLE_KEYS

ASKS = ("human", "user", "instruction", "prompt", "question", "query", "input")
ANSWERS = ("assistant", "bot", "gpt", "completion", "answer", "response", "output")
SYSTEM = "system"
_ROLE_KEYS = frozenset(ROLE_KEYS)


def as_exchange(item: Any) -> list[dict[str, Any]] | None:
    """``{"human": ..., "assistant": ...}`` or ``[question, answer]`` as messages; ``None`` for anything else."""
    if isinstance(item, list | tuple) and len(item) == 2:
        return _turns(None, *item)
    if not isinstance(item, Mapping) or not _ROLE_KEYS.isdisjoint(item):
        return None
    asks, answers = [key for key in ASKS if key in item], [key for key in ANSWERS if key in item]
    if len(asks) != 1 or len(answers) != 1 or set(item) - {asks[0], answers[0], SYSTEM}:
        return None
    return _turns(item.get(SYSTEM), item[asks[0]], item[answers[0]])


def _turns(system: Any, asked: Any, answered: Any) -> list[dict[str, Any]]:
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
