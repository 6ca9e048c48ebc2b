"""Answers from a trained model: one at a time, streamed, ending at the trained stop token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from qlora_core.data import ChatTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn; temperature 0 takes the likeliest."""

    temperature: float = 0.7
    top_p: float = 0.9
    max_new_tokens: int = 512
    seed: int | None = None


def generate(
    model: Any,
    chat: ChatTokenizer,
    prompt_ids: Sequence[int],
    stop_ids: Sequence[int],
    sampling: Sampling,
    on_text: Callable[[str], None] | None = None,
) -> str:
    """The answer to a tokenised prompt, without the stop token; ``on_text`` gets it piece by piece."""
    streamer = _Streamer(chat, stop_ids, on_text) if on_text else None
    return chat.decode(generate_ids(model, prompt_ids, stop_ids, sampling, streamer))


def generate_ids(
    model: Any, prompt_ids: Sequence[int], stop_ids: Sequence[int], sampling: Sampling, streamer: Any = None
) -> list[int]:
    """The tokens of the answer, without the stop token."""
    if sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    ids = torch.tensor([list(prompt_ids)], device=model.get_input_embeddings().weight.device)
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), streamer=streamer, **_arguments(sampling, stop_ids)
        )
    return _ended(out[0, ids.shape[1] :], stop_ids)


def _ended(answer: Tensor, stop_ids: Sequence[int]) -> list[int]:
    """Tokens up to the first that ends an answer."""
    return list(takewhile(lambda token: token not in stop_ids, answer.tolist()))


def generate_many(
    model: Any, chat: ChatTokenizer, prompts: Sequence[Sequence[int]], stop_ids: Sequence[int], max_new_tokens: int
) -> list[str]:
    """The likeliest answer to each of several tokenised prompts, computed together."""
    width = max(len(prompt) for prompt in prompts)
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([[stop_ids[-1]] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    greedy = Sampling(temperature=0.0, max_new_tokens=max_new_tokens)
    with torch.inference_mode():
        out = model.generate(input_ids=ids, attention_mask=mask, **_arguments(greedy, stop_ids))
    return [chat.decode(_ended(row, stop_ids)) for row in out[:, width:]]


def _arguments(sampling: Sampling, stop_ids: Sequence[int]) -> dict[str, Any]:
    """Every sampling setting said outright, so that a base's own generation file cannot add its own."""
    arguments: dict[str, Any] = {
        "max_new_tokens": sampling.max_new_tokens,
        "eos_token_id": list(stop_ids),
        "pad_token_id": stop_ids[-1],
        "do_sample": sampling.temperature > 0,
        "use_cache": True,
    }
    drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    plain = {"temperature": None, "top_p": None, "top_k": None}
    return arguments | (drawn if sampling.temperature > 0 else plain)


class _Streamer:
    """Hands on text as soon as it is whole: a token may be half a Chinese character."""

    def __init__(self, chat: ChatTokenizer, stop_ids: Sequence[int], on_text: Callable[[str], None]) -> None:
        self._chat = chat
        self._stop_ids = stop_ids
        self._on_text = on_text
        self._ids: list[int] = []
        self._shown = 0
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:
        """Take new token ids; the first call is the prompt."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._ids += _ended(value.reshape(-1), self._stop_ids)
        text = self._chat.decode(self._ids)
        if not text.endswith("\ufffd"):
            self._hand_on(text)

    def end(self) -> None:
        """Hand on whatever is left."""
        self._hand_on(self._chat.decode(self._ids))

    def _hand_on(self, text: str) -> None:
        if len(text) > self._shown:
            self._on_text(text[self._shown :])
            self._shown = len(text)
