"""Where the messages of a conversation lie in its rendered text, in characters."""

import json
from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import NamedTuple

from qlora_core.data.chat.chat_template import ChatTemplate, TemplateFault
from qlora_core.data.chat.message_marks import (
    as_dicts,
    cut_thought,
    has_reasoning,
    marked,
    stand_ins,
)
from qlora_core.data.chat.outline import OTHER_FILE, Outline, Outliner, Unlocatable
from qlora_core.data.schema import Conversation, Message


class MessageSpan(NamedTuple):
    """One message's characters, [start, end).

    An answer begins right after what the template writes to ask for it, and ends after the stop
    token. Other messages are their content alone.
    """

    message: int
    start: int
    end: int


class Ending(NamedTuple):
    """The token that ends an answer, and what is put behind the last one, or behind a tool call, without it."""

    stop: str
    behind_last: str
    behind_call: str


class Located(NamedTuple):
    """A conversation as text, and every message's span in it, in order.

    ``asked`` are the characters [start, end) that ask for the last answer, where the template asks for answers.
    ``left_out`` counts answers that are written without their reasoning. ``stop_added``: the last answer's end is ours.
    """

    text: str
    spans: list[MessageSpan]
    asked: tuple[int, int] | None = None
    left_out: int = 0
    stop_added: bool = False
    system_moved: bool = False


Signature = tuple[tuple[str, bool], ...]


class SpanFinder:
    """Finds messages in rendered text. What a template does for a sequence of roles is worked out once.

    ``stops`` are the tokens that may end an answer, as text.
    """

    def __init__(self, template: ChatTemplate, ending: Ending, stops: Sequence[str]) -> None:
        self._template = template
        self._ending = ending
        self._stops = tuple(stops)
        self._outliner = Outliner(template, stops)
        self._outlines: dict[Signature, Outline | Unlocatable | None] = {}

    @property
    def generation_prompt(self) -> str:
        """What the template writes to ask for an answer; nothing where it has no such thing."""
        return self._outliner.generation_prompt

    def locate(self, row: Conversation) -> Located:
        """The rendered text of a conversation, with the spans of its messages.

        Raises:
            TemplateFault: the template refuses the messages.
            Unlocatable: it does not show where they are, or leaves out a part of them.
        """
        dicts = as_dicts(row.messages, text_arguments=_calls(row) and self._template.text_arguments)
        text = self._template.render(dicts, tools=row.tools)
        if row.tools and text == self._template.render(dicts):
            raise Unlocatable("the chat template leaves out the tools", f"--ignore tools, or {OTHER_FILE}")
        if not _has_extras(row):
            outline = self._outline(row.messages)
            starts = outline and _walk(outline, row.messages, text)
            if outline and starts:
                return self._located(outline, starts, row, text)
        try:
            return self._marked(row, text)
        except Unlocatable:
            spans = self._from_markers(row, text)
            if spans is None:
                raise
            return Located(text, spans)

    def _outline(self, messages: Sequence[Message]) -> Outline | None:
        """The outline for the messages' roles; ``None`` where the template refuses stand-ins. Raises ``Unlocatable``"""
        signature = tuple((message.role, has_reasoning(message)) for message in messages)
        if signature not in self._outlines:
            try:
                self._outlines[signature] = self._outliner.outline(stand_ins(messages))
            except TemplateFault:
                self._outlines[signature] = None
            except Unlocatable as fault:
                self._outlines[signature] = fault
        found = self._outlines[signature]
        if isinstance(found, Unlocatable):
            raise Unlocatable(str(found), found.fix)
        return found

    def _marked(self, row: Conversation, text: str) -> Located:
        """The spans of a row whose text the template rewrites: the row's own texts are given marks."""
        answers = [number for number, message in enumerate(row.messages) if message.role == "assistant"]
        needed = {n for n, m in enumerate(row.messages) if m.supervised != row.supervise_all}
        text_arguments = _calls(row) and self._template.text_arguments
        fault: Exception = Unlocatable("the chat template rewrites this row: where its answers are is not certain")
        for wanted in (range(len(row.messages)), answers):
            try:
                outline = self._outliner.outline(marked(row.messages, row.tools, wanted, text_arguments))
            except (TemplateFault, Unlocatable) as error:
                fault = error if isinstance(error, Unlocatable) else fault
                continue
            if "".join(outline.parts) == text:
                break
        else:
            raise fault
        if not needed <= {slot.message for slot in outline.slots}:
            raise Unlocatable("the chat template does not show where an empty message of this row is")
        starts = [0, *accumulate(map(len, outline.parts))][:-1]
        _check_kept(outline, row.messages, text)
        return self._located(outline, starts, row, text)

    def _located(self, outline: Outline, starts: Sequence[int], row: Conversation, text: str) -> Located:
        """Spans from an outline whose literal parts begin at ``starts`` in the text."""
        spans = []
        for number, run in groupby(range(len(outline.slots)), lambda index: outline.slots[index].message):
            own = list(run)
            place = outline.answers.get(number)
            start = starts[place.first] + place.asked if place else starts[own[0]] + len(outline.parts[own[0]])
            end = starts[place.last] + place.closing if place else starts[own[-1] + 1]
            spans.append(MessageSpan(number, start, end))
        asked, added = None, False
        last = outline.answers.get(len(row.messages) - 1)
        if last and not last.stopped:
            text += self._ending.behind_call if row.messages[-1].tool_calls else self._ending.behind_last
            spans[-1], added = MessageSpan(len(row.messages) - 1, spans[-1].start, len(text)), True
        if outline.answers:
            place = outline.answers[max(outline.answers)]
            asked = (starts[place.first] + place.header, starts[place.first] + place.asked)
        return Located(text, spans, asked, len(outline.left_out), added, outline.system_moved)

    def _from_markers(self, row: Conversation, text: str) -> list[MessageSpan] | None:
        """Spans from the template's own marks, where it marks each answer once and nothing else matters."""
        answers = [number for number, message in enumerate(row.messages) if message.role == "assistant"]
        others = (message for message in row.messages if message.role != "assistant")
        if not self._template.marks_answers or any(message.supervised != row.supervise_all for message in others):
            return None
        _, found = self._template.render_marked(as_dicts(row.messages), row.tools)
        kept = [(n, *span) for n, span in zip(answers, found, strict=False)]
        if len(found) != len(answers) or not all(_holds(text[a:b], row.messages[n].content) for n, a, b in kept):
            return None
        return [MessageSpan(number, start, self._marked_end(text, start, end)) for number, start, end in kept]

    def _marked_end(self, text: str, start: int, end: int) -> int:
        """Behind the stop token, whether the block holds it or it follows."""
        inside = text[start:end].rstrip()
        if inside.endswith(self._stops):
            return start + len(inside)
        behind = text[end:].lstrip()
        stop = next((stop for stop in self._stops if behind.startswith(stop)), None)
        return len(text) - len(behind) + len(stop) if stop else end


def _calls(row: Conversation) -> bool:
    return any(message.tool_calls for message in row.messages)


def _has_extras(row: Conversation) -> bool:
    """Whether the row holds what differs from row to row in more than its texts."""
    return bool(row.tools) or any(m.tool_calls or m.name or m.tool_call_id for m in row.messages)


def _walk(outline: Outline, messages: Sequence[Message], text: str) -> list[int] | None:
    """Where each part begins in a text that is the outline with the texts put in, perhaps stripped; else ``None``."""
    starts, pos = [0], 0
    followers = outline.parts[1:]
    for part, slot, follower in zip(outline.parts, outline.slots, followers, strict=False):
        if not text.startswith(part, pos):
            return None
        message = messages[slot.message]
        given = (message.reasoning or "") if slot.field == "reasoning" else message.content
        written = _as_written(given, text, pos + len(part), follower)
        if written is None:
            return None
        pos += len(part) + len(written)
        starts.append(pos)
    return starts if text[pos:] == outline.parts[-1] else None


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


def _check_kept(outline: Outline, messages: Sequence[Message], text: str) -> None:
    """Raise ``Unlocatable`` where the template dropped words inside a message. Only earlier thinking may go."""
    for number, message in enumerate(messages):
        own = [index for index, slot in enumerate(outline.slots) if slot.message == number]
        written = "".join(outline.parts[own[0] + 1 : own[-1] + 1]) if own else text
        _, thought, answer = cut_thought(message.content) if message.role == "assistant" else ("", "", message.content)
        thoughts = () if number in outline.left_out else (thought, message.reasoning or "")
        if not all(_holds(written, wanted) for wanted in (answer, *thoughts)):
            raise Unlocatable(f"the chat template drops a part of the {message.role} message")


def _holds(written: str, wanted: str) -> bool:
    """Whether a text holds another, white space aside, perhaps as JSON writes it."""
    if wanted in written:
        return True
    squeezed = _squeezed(written)
    return any(_squeezed(form) in squeezed for form in (wanted, json.dumps(wanted, ensure_ascii=False)[1:-1]))


def _squeezed(text: str) -> str:
    return "".join(text.split())
