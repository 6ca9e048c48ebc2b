"""Where each answer begins and ends in a template's text, from marks that the template carried through."""

import re
from collections.abc import Collection, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

from qlora_core.data.chat.chat_template import ChatTemplate, MessageDict, TemplateFault
from qlora_core.data.chat.message_marks import MARK, REASONING_KEYS, MarkedMessages, Slot

OTHER_TEMPLATE = "--chat-template chatml"
OTHER_FILE = "--chat-template FILE.jinja"
# What a template may write to ask for an answer beyond what it writes before one: tags such as <think>
_OPENED = re.compile(r"(?:\s|<[^<>]+>|\[[A-Z_/]+\])*")
_QUESTION, _ANSWER = "\ue0ea", "\ue0eb"


class Unlocatable(Exception):
    """The messages cannot be found, or the template leaves out text. Reason and ``fix`` are for a person."""

    def __init__(self, reason: str, fix: str = OTHER_TEMPLATE) -> None:
        super().__init__(reason)
        self.fix = fix


class AnswerPlace(NamedTuple):
    """An answer among the parts of a text.

    It begins ``asked`` characters into the part ``first``, in front of its first mark, and ends ``closing`` characters
    into the part ``last``, behind its last mark; ``stopped`` is whether a stop token ends it there. What asks for it
    begins at ``header`` of the part ``first``.
    """

    first: int
    header: int
    asked: int
    last: int
    closing: int
    stopped: bool


class Outline(NamedTuple):
    """A template's text cut at its marks: one slot for each mark, and one part more than that.

    ``answers`` are by the numbers of their messages. ``left_out`` are the messages whose reasoning is not written, as
    templates do where a conversation goes on. ``system_moved``: the system message stands behind an earlier answer.
    """

    parts: list[str]
    slots: list[Slot]
    answers: dict[int, AnswerPlace]
    left_out: frozenset[int]
    system_moved: bool


class _Text(NamedTuple):
    """A rendered text cut at its marks, and their numbers."""

    parts: list[str]
    marks: list[int]

    def last_mark(self) -> int | None:
        return self.marks[-1] if self.marks else None


class Outliner:
    """Makes outlines of one template's texts. ``stops`` are the tokens that may end an answer."""

    def __init__(self, template: ChatTemplate, stops: Sequence[str]) -> None:
        self._template = template
        self._stop = any_of(stops)

    def outline(self, given: MarkedMessages) -> Outline:
        """The outline of a conversation whose texts hold marks.

        Raises:
            TemplateFault: the template refuses the messages.
            Unlocatable: it leaves out a part of them, moves one, or writes an answer more than once.
        """
        text = _cut(self._render(given, len(given.dicts)))
        slots = [given.slots[mark] for mark in text.marks]
        answers = sorted({slot.message for slot in given.slots if _role(given, slot) == "assistant"})
        left_out = self._check_complete(given, set(text.marks), max(answers, default=-1))
        moved = _system_moved(given, [slot.message for slot in slots])
        places = {number: self._place(given, text, slots, number) for number in answers}
        return Outline(text.parts, slots, places, left_out, moved)

    @cached_property
    def generation_prompt(self) -> str:
        """What the template writes to ask for an answer to a question; nothing where it has no such thing."""
        bare, asking = self._bare_and_asking
        return asking[len(bare) :] if asking.startswith(bare) else ""

    @cached_property
    def _bare_and_asking(self) -> tuple[str, str]:
        """A question, and the same when an answer is asked for."""
        asked = [{"role": "user", "content": _QUESTION}]
        try:
            return self._template.render(asked), self._template.render(asked, add_generation_prompt=True)
        except TemplateFault:
            return "", ""

    @cached_property
    def writes_reasoning(self) -> bool:
        """Whether the reasoning of an answer to a question comes out at all."""
        answer = {"role": "assistant", "content": "!", **dict.fromkeys(REASONING_KEYS, _ANSWER)}
        try:
            return _ANSWER in self._template.render([{"role": "user", "content": "?"}, answer])
        except TemplateFault:
            return False

    @cached_property
    def _lead(self) -> str:
        """What stands between the beginning of an answer and its text where nothing asks for it."""
        asked: list[MessageDict] = [{"role": "user", "content": "?"}]
        try:
            text = self._template.render([*asked, {"role": "assistant", "content": _ANSWER}])
            prompt = self._template.render(asked, add_generation_prompt=True)
        except TemplateFault:
            return ""
        return text.partition(_ANSWER)[0].removeprefix(prompt) if text.startswith(prompt) else ""

    def _render(self, given: MarkedMessages, count: int, *, asking: bool = False) -> str:
        return self._template.render(given.dicts[:count], tools=given.tools, add_generation_prompt=asking)

    def _beginning_of(self, given: MarkedMessages, count: int, *, asking: bool = False) -> str | None:
        """The text of the first ``count`` messages; ``None`` where the template refuses to end there."""
        try:
            return self._render(given, count, asking=asking)
        except TemplateFault:
            return None

    def _check_complete(self, given: MarkedMessages, written: set[int], last_answer: int) -> frozenset[int]:
        """The messages whose reasoning is left out as it should be. Raises ``Unlocatable`` for all else that is."""
        left_out = set()
        for mark, slot in enumerate(given.slots):
            if mark in written:
                continue
            goes_on = slot.message != last_answer or slot.message + 1 < len(given.dicts)
            if goes_on and (slot.field == "thought" or (slot.field == "reasoning" and self.writes_reasoning)):
                left_out.add(slot.message)
            else:
                raise _dropped(slot, _role(given, slot))
        return frozenset(left_out)

    def _place(self, given: MarkedMessages, text: _Text, slots: Sequence[Slot], number: int) -> AnswerPlace:
        own = [index for index, slot in enumerate(slots) if slot.message == number]
        if not own or own != list(range(own[0], own[-1] + 1)) or len(set(text.marks[own[0] : own[-1] + 1])) != len(own):
            raise Unlocatable("the chat template does not show where answers begin and end")
        header, asked = self._beginning(given, text, number, own[0])
        closing, stopped = self._end(given, text, number, own[-1])
        return AnswerPlace(own[0], header, asked, own[-1] + 1, closing, stopped)

    def _beginning(self, given: MarkedMessages, text: _Text, number: int, first: int) -> tuple[int, int]:
        """From where to where the answer is asked for, in the part in front of its first mark."""
        before = text.parts[first]
        prompt = self._beginning_of(given, number, asking=True)
        bare = self._beginning_of(given, number)
        asking = prompt[len(bare) :] if prompt and bare is not None and prompt.startswith(bare) else ""
        asking = asking or self.generation_prompt
        if prompt is not None and _cut(prompt).last_mark() == (text.marks[first - 1] if first else None):
            behind = _cut(prompt).parts[-1]
            shared = shared_length(before, behind)
            header = len(behind) - len(asking) if behind.endswith(asking) else len(behind)
            if (header < shared and _OPENED.fullmatch(behind[shared:])) or shared == len(behind):
                return self._or_by_its_header(before, header, shared)
        found = _last_of(before, asking)
        if found:
            return found
        at = len(before) - len(self._lead) if before.endswith(self._lead) else len(before)
        return self._or_by_its_header(before, at, at)

    def _or_by_its_header(self, before: str, header: int, asked: int) -> tuple[int, int]:
        """Where the template asks by nothing, but opens answers with a header: that asks, and is not the model's."""
        bare, asking = self._bare_and_asking
        return (asked, len(before.rstrip(" "))) if bare == asking and before[asked:].strip() else (header, asked)

    def _end(self, given: MarkedMessages, text: _Text, number: int, last: int) -> tuple[int, bool]:
        """How much of the part behind an answer's last mark is its own, and whether that ends in a stop token."""
        after = text.parts[last + 1]
        own, whole = len(after), True
        if number + 1 < len(given.dicts):
            alone = _cut(self._beginning_of(given, number + 1) or "")
            own = shared_length(after, alone.parts[-1])
            whole = alone.last_mark() == text.marks[last] and own == len(alone.parts[-1])
        found = self._stop.search(after, 0, own) or self._stop_at(after, own if whole else 0)
        if found:
            return found.end(), True
        if not whole and given.slots[text.marks[last]].field == "call":
            raise Unlocatable("the chat template does not show where tool calls end", OTHER_FILE)
        return len(after[:own].rstrip()) if whole else 0, False

    def _stop_at(self, after: str, pos: int) -> re.Match[str] | None:
        """A stop token behind white space: the next role's, where that ends an answer."""
        return self._stop.match(after, pos + len(after[pos:]) - len(after[pos:].lstrip()))


def any_of(tokens: Collection[str]) -> re.Pattern[str]:
    """A pattern that finds any of the tokens, the longest first, and nothing where there are none."""
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _cut(text: str) -> _Text:
    pieces = MARK.split(text)
    return _Text(pieces[::2], [int(mark) for mark in pieces[1::2]])


def _role(given: MarkedMessages, slot: Slot) -> Any:
    return given.dicts[slot.message]["role"]


def _system_moved(given: MarkedMessages, order: Sequence[int]) -> bool:
    """Whether the template puts the system message behind an answer.

    Raises ``Unlocatable`` where any other message is moved: an answer would be learned after what came later.
    """
    others = [number for number in order if number or given.dicts[0]["role"] != "system"]
    for before, number in pairwise(others):
        if number < before:
            raise Unlocatable(f"the chat template moves message {before + 1} ({given.dicts[before]['role']}) forward")
    return bool(order) and len(others) < len(order) and order[0] != 0


def _dropped(slot: Slot, role: str) -> Unlocatable:
    number = slot.message + 1
    if slot.field == "call":
        return Unlocatable(f"the chat template leaves out the tool calls of message {number}", OTHER_FILE)
    if slot.field == "reasoning":
        reason = f"the chat template leaves out the reasoning of message {number} ({role})"
        return Unlocatable(reason, f"--ignore reasoning_content, or {OTHER_FILE}")
    if slot.field == "thought":
        return Unlocatable(f"the chat template drops a part of the {role} message (its thinking?)")
    return Unlocatable(f"the chat template leaves out message {number} ({role})")


def shared_length(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    differing = (index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))


def _last_of(before: str, asking: str) -> tuple[int, int] | None:
    """Where a text last asks with the most of ``asking`` that it has; ``None`` where it never does."""
    for length in range(len(asking), 0, -1):
        if _OPENED.fullmatch(asking[length:]) and asking[:length].strip():
            at = before.rfind(asking[:length])
            if at >= 0:
                return at, at + length
    return None
