"""Rows that lack a column: which one, which were found, and the mapping that would do."""

from collections.abc import Mapping
from typing import Any

from qlora_core.data.bad_rows import RowRejected
from qlora_core.data.rows.column_names import fold
from qlora_core.data.rows.values import kind_of, quoted
from qlora_core.data.schema import ANSWER_COLUMNS, KNOWN_COLUMNS, PROMPT_COLUMNS
from qlora_profiles.suggest import did_you_mean

ACCEPTED_ANSWERS = ("answers", "responses", "completions", "outputs", "generations")
MOST_COMPARED = 50
"""Columns looked at for a slip of the pen; a row may have a hundred thousand."""
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
    fix = _mapping(half, strangers)
    for column in strangers[:MOST_COMPARED] if "," not in fix else ():
        for wanted in did_you_mean(column, _candidates(half)):
            return RowRejected(f'no "{wanted}", found "{column}"', fix=f"--field {wanted}={column}")
    return RowRejected(f'no "{half or "messages"}", found {quoted(found)}', fix=fix)


def _mapping(half: str | None, strangers: list[str]) -> str:
    folded = {fold(name): name for name in strangers}
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
        return KNOWN_COLUMNS
    return (half, *(ANSWER_COLUMNS if half in ANSWER_COLUMNS else PROMPT_COLUMNS))
