"""Where the messages of a conversation lie in its rendered text, in characters."""

import json
import re
from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple

from qlora_core.data.chat.chat_template import ChatTemplate, TemplateFault
from qlora_core.data.schema import Message

# A stand-in for a message's content: private-use characters around the message's number
_MARK = re.compile("\ue0e0([0-9]+)\ue0e1")
THINKING_ENDS = "</think>"
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
OTHER_TEMPLATE = "--chat-template chatml"


class Unlocatable(Exception):
    """The messages cannot be found, or the template leaves out text. The reason is for a person."""


class MessageSpan(NamedTuple):
    """One message's characters, [start, end).

    An answer begins right after what the template writes to ask for it, and ends after the stop
    token. Other messages are their content alone.
    """

    message: int
    start: int
    end: int


class _Piece(NamedTuple):
    """One content in a template's text: the message, the text before it, and how much of that asks for it."""

    message: int
    before: str
    asked: int  # characters of ``before`` up to where an answer begins


class _Skeleton(NamedTuple):
    """A template's own text for a sequence of roles, cut where the contents go."""

    pieces: tuple[_Piece, ...]
    tail: str


class SpanFinder:
    """Finds messages in rendered text. What a template does for a sequence of roles is worked out once.

    ``stops`` are the tokens that may end a message, as text.
    """

    def __init__(self, template: ChatTemplate, stops: Sequence[str]) -> None:
        self._template = template
        self._skeletons: dict[tuple[str, ...], _Skeleton | None] = {}
        self._stops = tuple(stops)
        self._stop = re.compile(rf"\s*(?:{'|'.join(map(re.escape, stops))})")

    def locate(self, messages: Sequence[Message]) -> tuple[str, list[MessageSpan]]:
        """The rendered text, and every message's span in it, in order.

        Raises:
            TemplateFault: the template refuses the messages.
            Unlocatable: it does not show where they are, or leaves out a part of them.
        """
        dicts = as_dicts(messages)
        if self._template.marks_answers:
            text, marked = self._template.render_marked(dicts)
            spans = self._from_markers(messages, text, marked)
            if spans:
                return text, spans
        text = self._template.render(dicts)
        skeleton = self._skeleton(tuple(message.role for message in messages))
        if skeleton is None:
            raise Unlocatable("the chat template does not show where answers begin and end")
        return text, self._walk(skeleton, messages, text) or self._from_tails(skeleton, messages, text)

    def _from_markers(
        self, messages: Sequence[Message], text: str, marked: list[tuple[int, int]]
    ) -> list[MessageSpan] | None:
        """Spans from the template's own marks, when it marks each answer once and nothing else matters."""
        answers = [number for number, message in enumerate(messages) if message.role == "assistant"]
        only_answers = all(message.supervised or message.role == "assistant" for message in messages) or not any(
            message.supervised for message in messages if message.role != "assistant"
        )
        if len(marked) != len(answers) or not only_answers:
            return None
        for number, (start, end) in zip(answers, marked, strict=True):
            _check_kept(messages[number], text[start:end], is_last=number == len(messages) - 1)
        return [
            MessageSpan(number, start, self._marked_end(text, start, end))
            for number, (start, end) in zip(answers, marked, strict=True)
        ]

    def _marked_end(self, text: str, start: int, end: int) -> int:
        """Behind the stop token, whether the block holds it or it follows."""
        inside = text[start:end].rstrip()
        if inside.endswith(self._stops):
            return start + len(inside)
        return self._after_stop(text, end)

    def _after_stop(self, text: str, end: int) -> int:
        found = self._stop.match(text, end)
        return found.end() if found else end

    def _skeleton(self, roles: tuple[str, ...]) -> _Skeleton | None:
        if roles not in self._skeletons:
            self._skeletons[roles] = _skeleton_of(self._template, roles)
        return self._skeletons[roles]

    def _walk(self, skeleton: _Skeleton, messages: Sequence[Message], text: str) -> list[MessageSpan] | None:
        """Spans where the text is the skeleton with the contents put in, perhaps stripped; else ``None``."""
        spans, pos = [], 0
        followers = [*(piece.before for piece in skeleton.pieces[1:]), skeleton.tail]
        for piece, follower in zip(skeleton.pieces, followers, strict=True):
            if not text.startswith(piece.before, pos):
                return None
            content_at = pos + len(piece.before)
            written = _as_written(messages[piece.message].content, text, content_at, follower)
            if written is None:
                return None
            spans.append(self._span(messages, piece, text, pos, content_at, content_at + len(written)))
            pos = content_at + len(written)
        return spans if text[pos:] == skeleton.tail else None

    def _from_tails(self, skeleton: _Skeleton, messages: Sequence[Message], text: str) -> list[MessageSpan]:
        """Spans where the template rewrites contents (thinking, JSON): each content is given a mark at its end."""
        parts = self._marked_tails(messages, text)
        if parts is None or [int(number) for number in parts[1::2]] != [piece.message for piece in skeleton.pieces]:
            raise Unlocatable("the chat template rewrites this row: where its answers begin and end is not certain")
        spans, pos = [], 0
        for piece, part in zip(skeleton.pieces, parts[::2], strict=False):
            asking = piece.before[: piece.asked]
            if not part.startswith(asking):
                raise Unlocatable("the chat template does not show where this row's answers begin")
            kept_from = len(piece.before) if part.startswith(piece.before) else len(asking)
            _check_kept(messages[piece.message], part[len(asking) :], is_last=piece.message == len(messages) - 1)
            spans.append(self._span(messages, piece, text, pos, pos + kept_from, pos + len(part)))
            pos += len(part)
        return spans

    def _span(
        self, messages: Sequence[Message], piece: _Piece, text: str, pos: int, content_at: int, content_end: int
    ) -> MessageSpan:
        if messages[piece.message].role != "assistant":
            return MessageSpan(piece.message, content_at, content_end)
        return MessageSpan(piece.message, pos + piece.asked, self._after_stop(text, content_end))

    def _marked_tails(self, messages: Sequence[Message], text: str) -> list[str] | None:
        """The text cut at the ends of the contents (text, message, text, message, ... text), or ``None``."""
        for strip in (False, True):
            contents = (message.content.rstrip() if strip else message.content for message in messages)
            marked = [
                {"role": message.role, "content": content + _mark(number)}
                for number, message, content in zip(count(), messages, contents, strict=False)
            ]
            try:
                parts = _MARK.split(self._template.render(marked))
            except TemplateFault:
                return None
            if "".join(parts[::2]) == text:
                return parts
        return None


def as_dicts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages the way templates want them. Reasoning comes under every name that some template reads."""
    return [_as_dict(message) for message in messages]


def _as_dict(message: Message) -> dict[str, Any]:
    given: dict[str, Any] = {"role": message.role, "content": message.content}
    given |= dict.fromkeys(REASONING_KEYS, message.reasoning) if message.reasoning is not None else {}
    given |= {"tool_calls": [*message.tool_calls]} if message.tool_calls else {}
    optional = {"name": message.name, "tool_call_id": message.tool_call_id}
    return given | {key: value for key, value in optional.items() if value is not None}


def _skeleton_of(template: ChatTemplate, roles: tuple[str, ...]) -> _Skeleton | None:
    """What the template writes around stand-ins. ``None`` where an answer does not come exactly once, in order.

    Raises ``Unlocatable`` where a message is left out.
    """
    stand_ins = [{"role": role, "content": _mark(number)} for number, role in enumerate(roles)]
    try:
        text = template.render(stand_ins)
    except TemplateFault:
        return None
    parts = _MARK.split(text)
    order = [int(number) for number in parts[1::2]]
    for number, role in enumerate(roles):
        if number not in order:
            raise Unlocatable(f"the chat template leaves out message {number + 1} ({role})")
    answers = [number for number in order if roles[number] == "assistant"]
    if answers != sorted(set(answers)):
        return None
    return _Skeleton(tuple(_pieces(template, stand_ins, text, parts)), parts[-1])


def _pieces(template: ChatTemplate, stand_ins: list[dict[str, str]], text: str, parts: list[str]) -> list[_Piece]:
    pieces, pos = [], 0
    for before, number in zip(parts[::2], map(int, parts[1::2]), strict=False):
        asked = len(before)
        if stand_ins[number]["role"] == "assistant":
            asked = _asked(template, stand_ins[:number], text, pos, len(before))
        pieces.append(_Piece(number, before, asked))
        pos += len(before) + len(_mark(number))
    return pieces


def _asked(template: ChatTemplate, earlier: list[dict[str, str]], text: str, pos: int, length: int) -> int:
    """How much of the ``length`` characters at ``pos`` the template also writes to ask for the answer."""
    try:
        prompt = template.render(earlier, add_generation_prompt=True)
    except TemplateFault:
        return length
    shared = _shared(text, prompt) - pos
    return shared if 0 < shared <= length else length


def _shared(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    differing = (index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))


def _mark(number: int) -> str:
    return f"\ue0e0{number}\ue0e1"


def _as_written(content: str, text: str, pos: int, follower: str) -> str | None:
    """The content as it stands at ``pos``, in front of ``follower``: itself, or stripped."""
    variants = [content]
    if content and (content[0].isspace() or content[-1].isspace()):
        variants += [
            content.strip(),
            content.lstrip(),
            content.rstrip(),
            content.strip("\n"),
            content.lstrip("\n"),
            content.rstrip("\n"),
        ]
    for variant in variants:
        if text.startswith(variant, pos) and text.startswith(follower, pos + len(variant)):
            return variant
    return None


def _check_kept(message: Message, written: str, *, is_last: bool) -> None:
    """Raise ``Unlocatable`` where the template dropped words. Only earlier thinking may go."""
    if message.content in written:
        return
    forms = [message.content, json.dumps(message.content, ensure_ascii=False)[1:-1]]
    if message.role == "assistant" and not is_last:
        forms.append(message.content.rpartition(THINKING_ENDS)[2])
    squeezed = _squeezed(written)
    if not any(_squeezed(form) in squeezed for form in forms):
        part = " (its thinking?)" if THINKING_ENDS in message.content else ""
        raise Unlocatable(f"the chat template drops a part of the {message.role} message{part}")


def _squeezed(text: str) -> str:
    return "".join(text.split())
