"""What was saved is read back by another process, as a stranger would: plain transformers and PEFT, none of our code.

Here is what it is asked and how; :mod:`qlora_core.jobs.read_back` is that process.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from qlora_core.data import ChatTokenizer, Conversation, Message, TokenizedExample
from qlora_core.session import child_process
from qlora_profiles import run_folder
from qlora_profiles.errors import EnvironmentProblem, UserError
from qlora_profiles.events import ReadBack

MOST_ROWS, MOST_HELD_OUT_ROWS = 20, 5
"""Rows that are tokenised again, and how many of them come from those held out."""
MOST_ROW_TOKENS = 20_000
"""Longer rows are left out: they would only take time."""
MOST_TOKENS = 64
"""Of the row that goes through a model."""
TOLERANCES = {"float32": 2e-3, "float16": 0.02, "bfloat16": 0.05}
"""Largest distance of logits (share of their length) by what they are computed in, where kernels differ."""
QUANTISED = 0.03
"""The same on a quantised base: bitsandbytes takes another product on some processors when nothing is trained."""
NAMES_SHOWN = 2
Row = tuple[Conversation, TokenizedExample]


class SavedRow(Struct, frozen=True, kw_only=True):
    """A row, as ``text`` and ``ids`` that were trained on.

    Of chat there are ``messages`` and ``tools``, and ``prompt`` is what asks for its last answer. Of plain text there
    is ``plain``, where nothing but a beginning and an end was added.
    """

    line: int
    text: str
    ids: list[int]
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    prompt: str | None = None
    plain: str | None = None


class Forward(Struct, frozen=True, kw_only=True):
    """How a saved model is loaded and what it must compute.

    ``base`` is what an adapter is put on, ``loading`` the arguments of its ``from_pretrained`` beside those spelled
    out. ``sums`` are ``fingerprints`` of the weights that were saved.
    """

    device: str
    dtype: str
    tolerance: float
    sums: dict[str, str]
    logits: Any = None
    base: str | None = None
    loading: dict[str, Any] = {}
    quantisation: dict[str, Any] | None = None
    autocast: str | None = None
    stop_ids: tuple[int, ...] = ()


class SavedFolder(Struct, frozen=True, kw_only=True):
    """A folder to read back: its tokenizer always, its weights where ``forward`` says how; else ``why_not``."""

    path: str
    forward: Forward | None = None
    why_not: str = ""


class ReadBackJob(Struct, frozen=True, kw_only=True):
    """``stop_id`` is the token that must end an answer; ``today`` what a template sees that writes the day."""

    rows: list[SavedRow]
    folders: list[SavedFolder]
    stop_id: int | None = None
    today: date | None = None
    trust_remote_code: bool = False
    threads: int = 0


class Finding(Struct, frozen=True, kw_only=True):
    """What one folder came to: ``faults`` where it is not what was trained, ``unchecked`` what could not be tried."""

    faults: list[str] = []
    unchecked: list[str] = []
    logits: bool = False
    """Whether the weights were loaded and their logits compared."""


class KeptRows(Struct, frozen=True, kw_only=True):
    """What stays in a run's folder for whoever saves something of it later, as a merge does; fields as above."""

    rows: list[SavedRow]
    adapter_sums: dict[str, str]
    stop_id: int | None
    today: date | None


def chosen(train: Sequence[Row], held_out: Sequence[Row]) -> list[Row]:
    """Up to twenty rows, spread over the data, some of those held out among them."""
    short = [[row for row in rows if len(row[1].input_ids) <= MOST_ROW_TOKENS] for rows in (train, held_out)]
    unseen = _spread(short[1], MOST_HELD_OUT_ROWS)
    return [*_spread(short[0], MOST_ROWS - len(unseen)), *unseen]


def _spread(rows: Sequence[Row], most: int) -> list[Row]:
    return [rows[index * len(rows) // most] for index in range(most)] if len(rows) > most else list(rows)


def row_for_weights(rows: Sequence[SavedRow]) -> list[int]:
    """The row that goes through the models: the one nearest to as long as is looked at; without rows, just tokens."""
    return min((row.ids for row in rows), key=lambda ids: abs(len(ids) - MOST_TOKENS), default=[*range(5, 37)])


def saved_row(chat: ChatTokenizer, conversation: Conversation, ids: Sequence[int]) -> SavedRow:
    """A row for the other process, which has no tokenizer of ours. Raises UserError as ``chat.encode``."""
    text = chat.text_of(conversation)
    common: dict[str, Any] = {"line": conversation.line, "text": text, "ids": list(ids)}
    if conversation.text is not None:
        return SavedRow(**common, plain=_plain(conversation.text, text))
    asked = conversation.messages[:-1]
    prompt = _prompt(chat, asked) if asked and not conversation.tools else None
    tools = json.loads(msgspec.json.encode(conversation.tools)) or None
    return SavedRow(**common, messages=chat.dicts_of(conversation.messages), tools=tools, prompt=prompt)


def _plain(given: str, text: str) -> str | None:
    """The text that a person gave, where it is a part of what was trained on that has no beginning or end itself."""
    before, found, after = text.partition(given)
    return given if found and (before or after) else None


def _prompt(chat: ChatTokenizer, messages: Sequence[Message]) -> str | None:
    try:
        return chat.render(messages, add_generation_prompt=True)
    except UserError:
        return None


def greeting(chat: ChatTokenizer) -> list[SavedRow]:
    """A row of our own, where nobody knows any more what was trained on."""
    said = (Message(role="user", content="Good day! 1 + 1?"), Message(role="assistant", content="2, good day."))
    try:
        conversation = Conversation(line=0, messages=said)
        return [saved_row(chat, conversation, chat.encode(conversation).input_ids)]
    except UserError:
        return []


class Reader:
    """The other process: it starts with its imports, so begin it early, and ``read`` once all is written."""

    def __init__(self, adapter: bool) -> None:
        """``adapter`` says whether PEFT will be needed. Raises EnvironmentProblem: it cannot be started."""
        command = [sys.executable, "-m", "qlora_core.jobs.read_back", *(["--adapter"] if adapter else [])]
        quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "BITSANDBYTES_NOWELCOME": "1"}
        environment = child_process.python_environment(strong=quiet)
        self._child = child_process.start(
            command, "the reading back", output="pipes", environment=environment, told=True
        )

    def read(
        self,
        job: ReadBackJob,
        file: Path,
        stop: Callable[[], object] = lambda: False,
        known: Mapping[str, Sequence[str]] | None = None,
    ) -> ReadBack | None:
        """What the folders of ``job`` came to; ``None`` where ``stop`` ended it.

        ``file`` holds the job meanwhile, ``known`` has faults by a folder's name that were found before.
        """
        started = time.monotonic()
        names = tuple(Path(folder.path).name for folder in job.folders)
        try:
            file.write_bytes(msgspec.json.encode(job))
            self._child.tell(str(file))
            self._child.hang_up()
            if not self._child.ended_by_itself(stop, float("inf")):
                return None
            findings = self._findings(len(names))
        except OSError as error:
            why = f"{file.name} cannot be written ({error.strerror or error})"
            findings = [Finding(unchecked=[why]) for _ in names]
        finally:
            self.end()
            file.unlink(missing_ok=True)
        for name, found in zip(names, findings, strict=True):
            found.faults.extend((known or {}).get(name, ()))
        return told(names, findings, len(job.rows), time.monotonic() - started)

    def end(self) -> None:
        """End it, whatever it does."""
        self._child.hang_up()
        self._child.end()

    def _findings(self, folders: int) -> list[Finding]:
        said, errors = self._child.said()
        if self._child.exit_code == 0 and said:
            return msgspec.json.decode(said[-1], type=list[Finding])
        last = errors[-1] if errors else f"exit {self._child.exit_code}"
        return [Finding(unchecked=[f"the reading process died ({last[:200]})"]) for _ in range(folders)]


def told(names: Sequence[str], findings: Sequence[Finding], rows: int, seconds: float) -> ReadBack:
    """All folders' findings as one."""
    faults = _named(names, [finding.faults for finding in findings])
    unchecked = _named(names, [finding.unchecked for finding in findings])
    nothing = all(finding.unchecked and not finding.logits for finding in findings)
    return ReadBack(
        state="different" if faults else "unchecked" if nothing else "same",
        folders=tuple(names),
        rows=rows,
        logits=all(finding.logits for finding in findings),
        faults=faults,
        unchecked=unchecked,
        seconds=seconds,
    )


def _named(names: Sequence[str], said: Sequence[Sequence[str]]) -> tuple[str, ...]:
    return tuple(f"{name}: {text}" for name, texts in zip(names, said, strict=True) for text in texts)


def problem(found: ReadBack) -> EnvironmentProblem:
    """What to raise, or say, where a folder is not what was trained."""
    more = len(found.faults) - NAMES_SHOWN
    shown = "; ".join(found.faults[:NAMES_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    return EnvironmentProblem(f"read back by plain transformers, what was saved is not what was trained: {shown}")


def job_file(folder: Path) -> Path:
    """Where the job lies while the other process reads."""
    return folder / run_folder.READ_BACK_JOB
