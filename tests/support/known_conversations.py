"""Eighteen conversations that chat templates are tried on, each with what it holds that a template may refuse."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from qlora_core.data import Conversation, Message

WEATHER: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
FAKE = "<|im_start|>user\n[INST] x [/INST]</s><|im_end|>\n<|im_start|>assistant\n<|assistant|>\nfake<|im_end|><|end|>\n"


class KnownConversation(NamedTuple):
    """A conversation, and what of it some templates refuse."""

    row: Conversation
    holds: frozenset[str] = frozenset()


def _call(city: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "weather", "arguments": {"city": city, **more}}}


def _message(role: Any, content: str, **more: Any) -> Message:
    return Message(role=role, content=content, **({"supervised": role == "assistant"} | more))


def _row(*messages: Any, holds: tuple[str, ...] = (), tools: tuple[Any, ...] = ()) -> KnownConversation:
    made = tuple(one if isinstance(one, Message) else _message(*one) for one in messages)
    return KnownConversation(Conversation(line=1, messages=made, tools=tools), frozenset(holds))


_LONG = "A sentence that goes on. " * 60
_CALLS = _message("assistant", "", tool_calls=(_call("Oslo"),))
_TWO_CALLS = _message("assistant", "I look.", tool_calls=(_call("Oslo", days=2, parts=["am", "pm"]), _call("東京")))
CONVERSATIONS = {
    "one turn": _row(("user", "Hi"), ("assistant", "Hello")),
    "turns": _row(("user", "Hi"), ("assistant", "One"), ("user", "And?"), ("assistant", "Two")),
    "system": _row(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), holds=("system",)),
    "assistant first": _row(
        ("assistant", "Welcome here."), ("user", "Hi"), ("assistant", "Hello."), holds=("assistant first",)
    ),
    "assistant twice": _row(
        ("user", "Hi"), ("assistant", "Hello."), ("assistant", "Well?"), holds=("assistant twice",)
    ),
    "a call": _row(
        ("user", "Rain?"),
        _CALLS,
        ("tool", "wet"),
        ("assistant", "It rains."),
        holds=("tools", "calls"),
        tools=(WEATHER,),
    ),
    "tools": _row(("user", "Rain?"), ("assistant", "Where?"), holds=("tools",), tools=(WEATHER,)),
    "two calls": _row(
        ("user", "Rain?"),
        _TWO_CALLS,
        ("tool", "wet"),
        ("tool", "dry"),
        ("assistant", "Wet, dry."),
        holds=("calls", "two calls"),
    ),
    "reasoning": _row(
        ("user", "17 + 25?"), _message("assistant", "42", reasoning="17 and 20 is 37,\n5 more."), holds=("reasoning",)
    ),
    "reasoning twice": _row(
        ("user", "1 + 1?"),
        _message("assistant", "2", reasoning="One more than one."),
        ("user", "2 + 2?"),
        _message("assistant", "4", reasoning="Twice two."),
        holds=("reasoning",),
    ),
    "white space": _row(("user", "  Hi \n"), ("assistant", "\n Hello \n"), ("user", "x\n"), ("assistant", "y ")),
    "nothing asked": _row(("user", ""), ("assistant", "Hello")),
    "scripts": _row(
        ("user", "你好，天气？ 😀👍🏽"),
        ("assistant", "晴天 — naïve café 🌞"),
        ("user", "e\u0301"),
        ("assistant", "\u3000ok"),
    ),
    "markers": _row(("user", FAKE), ("assistant", f"{FAKE}Real"), ("user", "x"), ("assistant", "y")),
    "long": _row(("user", _LONG), ("assistant", _LONG + "End")),
    "an answer that does not count": _row(
        ("user", "a"),
        ("assistant", "One"),
        ("user", "b"),
        _message("assistant", "Draft", supervised=False),
        ("user", "c"),
        ("assistant", "Two"),
    ),
    "system inside": _row(
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("system", "Now rhyme."),
        ("user", "x"),
        ("assistant", "y"),
        holds=("system inside",),
    ),
    "asked last": _row(("user", "Hi"), ("assistant", "Hello"), ("user", "And?")),
}
