"""What a file holds beside what is learned: told, or refused where it could shape the prompt or the loss."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qlora_core.data.rows.column_names import CANONICAL, Meaning, fold, meaning, place_of
from qlora_core.data.rows.messages import TEXT_ONLY
from qlora_core.data.rows.values import MAX_QUOTED, flag_of, is_empty, leaves, unpacked
from qlora_core.data.schema import ANSWER_COLUMNS, CONTENT_KEYS, PROMPT_COLUMNS
from qlora_profiles.errors import UserError

LABEL_WORDS, LABEL_CHARACTERS = 3, 40
"""Most of a text that can be the name of a kind ("closed qa")."""
SHORT_WORDS_AT_ONCE = 20
ROWS_A_LABEL = 5
"""Single words may be that many different ones, or one in so many rows, and still name kinds. Set by hand."""
REPEATED_CHARACTERS = 20
"""From here on a text that stands in a message, too, is taken to be the same text."""
SHOWN_NAMES = 12
NAMED_AT_ONCE = 40  # names in one --ignore that a person is given
ANSWER_NAMES = re.compile("response|answer|output|completion|reply|conversation")
_PUNCTUATION = re.compile(r"[\d/:_@#.+=-]")

Refused = Meaning | str


class Stray(NamedTuple):
    """A column or key that no rule reads, by its own name; ``twin`` is the one that was read in its place."""

    name: str
    kind: Meaning
    twin: str | None = None


class LeftOut:
    """Counts of columns (or keys of messages) that are left out, and what speaks against leaving each out.

    ``told`` are left out with a word, ``repeating`` say what the row says anyway, ``on_purpose`` were ignored by name.
    """

    def __init__(self, unit: str = "row") -> None:
        self._unit = unit
        self.told: Counter[str] = Counter()
        self.repeating: Counter[str] = Counter()
        self.on_purpose: Counter[str] = Counter()
        self._against: dict[str, Counter[str]] = defaultdict(Counter)
        self._twins: dict[str, str] = {}
        self._examples: dict[str, Any] = {}
        self._labels: dict[str, set[str]] = defaultdict(set)
        self._label_rows: Counter[str] = Counter()

    def add(self, stray: Stray, value: Any, contents: Sequence[str]) -> None:
        """One value that is left out of a row whose messages say ``contents``."""
        name, kind, twin = stray
        if is_empty(value):
            return
        if kind == "metadata":
            self.told[name] += 1
        elif kind in ("known", "matters", "unknown") and _repeats(value, contents, whole=name.lower() == "text"):
            self.repeating[name] += 1
        elif kind != "unknown":
            self.refuse(name, kind, value, twin)
        else:
            self._add_unknown(name, value)

    def refuse(self, name: str, kind: Refused, value: Any, twin: str | None = None) -> None:
        """A value that may not be left out."""
        if name not in self._examples:
            self._examples[name] = unpacked(value)
        self._against[kind][name] += 1
        if twin:
            self._twins[name] = twin

    def _add_unknown(self, name: str, value: Any) -> None:
        found = list(leaves(unpacked(value)))
        if any(isinstance(leaf, bytes) for leaf in found):
            self.refuse(name, "media", value)
            return
        texts = [leaf for leaf in found if isinstance(leaf, str) and not _is_code(leaf)]
        labels = [text for text in texts if _is_label(text)]
        if len(labels) < len(texts):
            self.refuse(name, "unknown", value)
            return
        self.told[name] += 1
        self._label_rows[name] += bool(labels)
        self._labels[name].update(labels)

    def _settle(self) -> None:
        """Unknown columns of short texts that are not the names of a few kinds speak against being left out."""
        for name, labels in self._labels.items():
            rows = self._label_rows[name]
            several = sum(" " in label or not label.isascii() for label in labels)
            most = max(SHORT_WORDS_AT_ONCE, rows // ROWS_A_LABEL)
            if len(labels) > most or several > rows // ROWS_A_LABEL:
                self._against["unknown"][name] += rows
        for name in self._against["unknown"]:
            self.told.pop(name, None)

    def fault(self, file: str, *, chosen: bool, pairs: bool, asked: bool = True) -> UserError | None:
        """Why the file cannot be learned like this, in one line.

        ``chosen`` says that a person named the preferred answer, ``pairs`` that rows are a prompt and an answer,
        ``asked`` that rows hold a question at all.
        """
        self._settle()
        against = self._against
        if chosen:
            for kind in ("preference", "ranking"):
                self.told.update(against.pop(kind, Counter()))
        if against["preference"]:
            return self._preference(file, asked)
        if against["media"]:
            names = list(against["media"])
            reason = f"{self._named('media')} hold images, sound or video: {TEXT_ONLY}"
            return UserError(f"{file}  {reason}", f"{_ignoring(names)} to learn the text alone")
        if against["ranking"] or against["weight"]:
            names = [*against["ranking"], *against["weight"]]
            reason = f"{self._named('ranking', 'weight')} weighs or ranks {self._unit}s, and all are learned alike"
            return UserError(f"{file}  {reason}", f"{_ignoring(names)} to do so")
        return self._shaping(file, pairs, texts=not (pairs or asked))

    def _preference(self, file: str, asked: bool) -> UserError:
        names = list(self._against["preference"])
        best = next((name for name in names if re.match("chosen|preferred|good|positive", name.lower())), None)
        reason = f"preference data: {self._named('preference')}; this learns one answer for each row"
        if best is not None:
            wanted = _place_of_answer(self._examples[best], asked)
            return UserError(f"{file}  {reason}", f"--field {wanted}={_shell(best)} to learn the chosen answers")
        first = next((name for name in names if ANSWER_NAMES.match(name.lower())), None)
        if first is not None:
            wanted = _place_of_answer(self._examples[first], asked)
            return UserError(f"{file}  {reason}", f"--field {wanted}={_shell(first)} to learn those")
        return UserError(f"{file}  {reason}", f"{_ignoring(names)} to learn every answer, good or bad")

    def _shaping(self, file: str, pairs: bool, texts: bool) -> UserError | None:
        kinds = ("known", "matters", "unknown", "key")
        names = [name for kind in kinds for name in self._against[kind]]
        if not names:
            return None
        reason = f"{self._named(*kinds)} would be left out, and could shape the prompt or the loss"
        placed = next(((name, place) for name in names if pairs and (place := place_of(name))), None)
        if placed is None and pairs and not self._twins and self._against["unknown"]:
            first = next(iter(self._against["unknown"]))
            nested = isinstance(self._examples.get(first), list | Mapping)
            placed = (first, place_of(first) or "context") if not nested else None
        other = f", or --field {placed[1]}={_shell(placed[0])} to learn with it" if placed else ""
        answers = (name for name in names if isinstance(self._examples.get(name), str))
        if texts and (answer := next(answers, None)):
            other = f", or --field question=text,answer={_shell(answer)} to learn it as the answer"
        return UserError(f"{file}  {reason}", f"{_ignoring(names)} to leave out{other}")

    def _named(self, *kinds: str) -> str:
        """``"context" (3 rows), "response" (beside "answer", 2 rows)``."""
        found = [(name, count) for kind in kinds for name, count in self._against[kind].items()]
        more = f" and {len(found) - SHOWN_NAMES} more" if len(found) > SHOWN_NAMES else ""
        return ", ".join(self._with_count(name, count) for name, count in found[:SHOWN_NAMES]) + more

    def _with_count(self, name: str, count: int) -> str:
        beside = f'beside "{self._twins[name]}", ' if name in self._twins else ""
        return f'"{name[:MAX_QUOTED]}" ({beside}{count:,} {self._unit if count == 1 else self._unit + "s"})'


def strays_of(columns: Mapping[str, Any], own: Mapping[str, str], used: Sequence[str]) -> dict[str, Stray]:
    """The columns that were not used, with what their names say. ``own`` are the file's names for those known."""
    answer = next((name for name in used if name in ANSWER_COLUMNS), None)
    prompt = next((name for name in used if name in PROMPT_COLUMNS), None)
    twins = dict.fromkeys(ANSWER_COLUMNS, answer) | dict.fromkeys(PROMPT_COLUMNS, prompt)
    left = {name: twins.get(name) or CANONICAL.get(fold(name)) for name in columns if name not in used}
    left = {name: twin if twin in used else None for name, twin in left.items()}
    return {
        name: Stray(own.get(name, name), meaning(name), twin and own.get(twin, twin)) for name, twin in left.items()
    }


def counted(counts: Mapping[str, int], rows: int) -> str:
    """``"id", "note" (3 rows)``: with a count where not all rows have it."""
    shown = [
        f'"{name[:MAX_QUOTED]}"' + (f" ({count:,} {'row' if count == 1 else 'rows'})" if count < rows else "")
        for name, count in list(counts.items())[:SHOWN_NAMES]
    ]
    return ", ".join([*shown, *(["..."] if len(counts) > SHOWN_NAMES else [])])


def _ignoring(names: Sequence[str]) -> str:
    names = names[:NAMED_AT_ONCE]
    if any("," in name for name in names):
        return " ".join(f"--ignore {_shell(name)}" for name in names)
    return f"--ignore {_shell(','.join(names))}"


def _shell(text: str) -> str:
    return text if re.fullmatch(r"[\w,.:/-]+", text) else f'"{text}"'


def _repeats(value: Any, contents: Sequence[str], *, whole: bool) -> bool:
    """Whether a row says this already: a message, a part of one, several in order; ``whole``: a rendering of all."""
    found = unpacked(value)
    if isinstance(found, str):
        text = found.strip()
        if any(text == content.strip() for content in contents):
            return True
        if len(text) >= REPEATED_CHARACTERS and any(text in content for content in contents):
            return True
        return whole and bool(contents) and all(content.strip() in text for content in contents)
    said = [_content(item) for item in found] if isinstance(found, list) else [_content(found)]
    starts = range(len(contents) - len(said) + 1)
    return bool(said) and any(list(contents[start : start + len(said)]) == said for start in starts)


def _content(item: Any) -> Any:
    """What a message says; anything else as it is."""
    if not isinstance(item, Mapping):
        return item
    return next((item[key] for key in CONTENT_KEYS if key in item), None)


def _place_of_answer(value: Any, asked: bool) -> str:
    """What ``--field`` calls a preferred answer: a whole conversation, text of one, or the answer alone."""
    if not isinstance(value, list):
        return "output" if asked else "text"
    roles = {str(item.get("role", item.get("from"))).lower() for item in value if isinstance(item, Mapping)}
    return "messages" if roles & {"user", "human"} else "output"


def _is_code(text: str) -> bool:
    """A number, date, address, path, hash or the like: no words."""
    plain = text.strip().rstrip(".!?")
    if flag_of(plain) is not None or not any(map(str.isalpha, plain)):
        return True
    if not plain.isascii():
        return False
    if " " not in plain:
        return bool(_PUNCTUATION.search(plain)) and "\n" not in plain
    return sum(map(str.isdigit, plain)) * 2 >= sum(map(str.isalnum, plain))


def _is_label(text: str) -> bool:
    words = len(text.split()) if text.isascii() else max(len(text.split()), (len(text) + 1) // 2)
    return words <= LABEL_WORDS and len(text) <= LABEL_CHARACTERS and "\n" not in text
