"""Rows that lack a column: which one, which were found, and the mapping that would do."""

from collections.abc import Mapping
from typing import Any

from qlora_core.data.bad_rows import RowRejected
from qlora_core.data.rows.column_names import fold, meaning
from qlora_core.data.rows.messages import ROLES
from qlora_core.data.rows.values import kind_of, quoted
from qlora_core.data.schema import ANSWER_COLUMNS, CONTENT_KEYS, KNOWN_COLUMNS, MESSAGE_COLUMNS, PROMPT_COLUMNS
from qlora_profiles.suggest import did_you_mean

ACCEPTED_ANSWERS = ("answers", "responses", "completions", "outputs", "generations")
MOST_COMPARED = 50
"""Columns looked at for a slip of the pen; a row may have a hundred thousand."""
CONTENTS = frozenset((*CONTENT_KEYS, "text"))
QUESTION_NAMES = tuple(name for name in KNOWN_COLUMNS if name not in ("context", "history", "reasoning", "tools"))
QUESTIONS = ("problem", "ask", "human", "user", "inputs", "source_text")
ANSWERS = ("target", "solution", "reply", "assistant", "bot", "gpt", "correct_answer", "targets", "label")


def missing(columns: Mapping[str, Any], prompt: str | None, answer: str | None) -> RowRejected:
    """Which column is wanted, which were found, and the mapping that would do."""
    if not columns:
        return RowRejected("the row is empty")
    found = list(columns)
    half = _missing_half(columns, prompt, answer)
    strangers = [name for name in found if name not in KNOWN_COLUMNS]
    several = next((name for name in strangers if fold(name) in ACCEPTED_ANSWERS), None)
    if several and half in ANSWER_COLUMNS and not isinstance(columns[several], str):
        kind = kind_of(columns[several])
        reason = f'no "{half}", and "{several}" is {kind} of several (accepted answers?): one answer is learned'
        return RowRejected(reason, fix=f'one text under "{half}" in each row')
    if told := _known_kind(columns):
        return told
    fix = _mapping(half, strangers, columns)
    by_kind = _by_kind(strangers, columns) if half is None and len(strangers) == len(columns) else None
    pair = by_kind is not None and "," in by_kind and not any(did_you_mean(name, MESSAGE_COLUMNS) for name in strangers)
    for column in strangers[:MOST_COMPARED] if "," not in fix and not pair else ():
        for wanted in did_you_mean(column, _candidates(half)):
            return RowRejected(f'no "{wanted}", found "{column}"', fix=f"--field {wanted}={column}")
    fix = fix if "," in fix else by_kind or fix
    return RowRejected(f'no "{half or "messages"}", found {quoted(found)}', fix=fix)


def is_one_message(columns: Mapping[str, Any]) -> bool:
    """Whether the row is one message of a conversation that goes over several rows: a role and what is said."""
    role = columns.get("role")
    return isinstance(role, str) and role.lower() in (*ROLES, "prompter") and not CONTENTS.isdisjoint(columns)


def _known_kind(columns: Mapping[str, Any]) -> RowRejected | None:
    """What rows of a kind that is no conversation are."""
    if is_one_message(columns):
        return RowRejected(
            "the row is one message of a conversation, not a whole one",
            fix='all of them in one row: {"messages": [...]}',
        )
    if "input_ids" in columns:
        return RowRejected('the row is tokenized already ("input_ids")', fix="the text that it was made from")
    pair = columns.get("translation")
    if isinstance(pair, Mapping) and len(pair) == 2:
        first, second = pair
        reason = f'"translation" holds "{first}" and "{second}", and does not say which of them is asked'
        return RowRejected(reason, fix=f'{{"prompt": the text in "{first}", "completion": the text in "{second}"}}')
    return None


def _by_kind(strangers: list[str], columns: Mapping[str, Any]) -> str | None:
    """The mapping of a row whose only columns of words are two, one, or a list."""
    told = [name for name in strangers if meaning(name) != "metadata"]
    texts = [name for name in told if isinstance(columns[name], str)]
    if len(texts) == len(told) == 2 and meaning(texts[0]) != "matters":
        return _field(f"question={texts[0]},answer={texts[1]}")
    if len(texts) == len(told) == 1:
        return _field(f"text={texts[0]}")
    lists = [name for name in told if isinstance(columns[name], list) and columns[name]]
    if len(lists) == len(told) == 1:
        return _field(f"messages={lists[0]}")
    return None


def _field(mapping: str) -> str:
    return f'--field "{mapping}"' if " " in mapping else f"--field {mapping}"


def _mapping(half: str | None, strangers: list[str], columns: Mapping[str, Any]) -> str:
    if {"source", "target"} <= set(strangers) and half is None:
        return "--field question=source,answer=target"
    folded = {fold(name): name for name in strangers if isinstance(columns[name], str)}
    question = next((folded[fold(name)] for name in QUESTIONS if fold(name) in folded), None)
    answer = next((folded[fold(name)] for name in ANSWERS if fold(name) in folded), None)
    if half is None and question and answer:
        return f"--field question={question},answer={answer}"
    if half in ANSWER_COLUMNS and answer:
        return f"--field {half}={answer}"
    if half and question:
        return f"--field {half}={question}"
    return f"--field {half or 'messages'}={strangers[0] if half and len(strangers) == 1 else 'COLUMN'}"


def _missing_half(columns: Mapping[str, Any], prompt: str | None, answer: str | None) -> str | None:
    """The column that a pair lacks, or ``None`` where the row has neither half."""
    if "instruction" in columns or prompt == "input":
        return "output"
    if prompt:
        return "answer" if prompt == "question" else "completion"
    return {None: None, "output": "instruction", "answer": "question"}.get(answer, "prompt")


def _candidates(half: str | None) -> tuple[str, ...]:
    if half is None:
        return QUESTION_NAMES
    return (half, *(ANSWER_COLUMNS if half in ANSWER_COLUMNS else PROMPT_COLUMNS))
