"""A source of data to conversations: finding it, reading it, and telling what is wrong with it."""

import hashlib
from collections.abc import Collection, Sequence

from msgspec.structs import replace

from qlora_core.data.bad_rows import BadRow, BadRows, RowRejected
from qlora_core.data.cells import Cells, perhaps_empty
from qlora_core.data.draw import drawn_order, rows_of_share
from qlora_core.data.rows.row_shapes import RowReader
from qlora_core.data.rows.values import quoted
from qlora_core.data.schema import KNOWN_COLUMNS, Conversation, DataSet, ReadOptions, check_fields
from qlora_core.data.sources.formats import Row
from qlora_core.data.sources.located import DataFile, Located, locate
from qlora_core.data.sources.open_file import OpenFile, open_file
from qlora_core.data.sources.stored import Wanted, seen_rows
from qlora_profiles.data_source import DataSource, parse_source
from qlora_profiles.errors import UserError
from qlora_profiles.suggest import did_you_mean
from qlora_profiles.visible import on_one_line

__all__ = ["OpenSource", "read_data", "wanted_rows"]

MOST_CHARACTERS = 10_000_000  # of a row: far more than any context, and about a gigabyte while it is tokenized


def read_data(options: ReadOptions) -> DataSet:
    """Read a source of examples.

    Raises:
        UserError: it cannot be read, holds no rows or columns that may not be left out, or an option cannot be.
        BadRows: rows cannot be used, and ``skip_bad_rows`` does not set them aside in ``DataSet.rejected``.
    """
    source = OpenSource(options)
    limited = options.max_samples is not None or source.source.share is not None
    return source.read(source.most() if limited else None)


def wanted_rows(source: DataSource, options: ReadOptions) -> Wanted:
    """What has to be fetched of a hub set for a recipe: no more rows than can be taken of it."""
    counts = [count for count in (source.share, options.max_samples) if isinstance(count, int)]
    return Wanted(most=min(counts, default=None), sample=options.sample, seed=options.seed)


class OpenSource:
    """One source: its files, how many rows they hold, and any of those as conversations.

    Raises:
        UserError: nothing is there, or an option cannot be.
    """

    def __init__(self, options: ReadOptions, number: int = 0, *, name_files: bool = False) -> None:
        _check(options)
        self.options, self._number = options, number
        self.source = parse_source(options.path)
        self.located: Located = locate(self.source, wanted_rows(self.source, options))
        self._name_files = name_files or len(self.located.files) > 1
        self._counts: list[int] | None = None

    @property
    def name(self) -> str:
        """What a person knows it by: a file's name, else the entry as it was written."""
        files = self.located.files
        return files[0].name if len(files) == 1 else self.source.whole

    def counts(self) -> list[int]:
        """How many rows each file holds, bad ones too. Raises UserError as ``open_file``."""
        if self._counts is None:
            self._counts = [open_file(file, self.options).size() for file in self.located.files]
        return self._counts

    def share_of_all(self) -> int:
        """How many rows its share is, of a hub set of all that the hub has. Raises UserError as ``open_file``."""
        here = sum(self.counts())
        seen = seen_rows(self.source, wanted_rows(self.source, self.options)) if self.source.hub else None
        return rows_of_share(self.source.share, here if seen is None else seen)

    def most(self) -> int:
        """How many rows the share and ``max_samples`` leave. Raises UserError as ``open_file``."""
        most = self.options.max_samples
        rows = rows_of_share(self.source.share, sum(self.counts()))
        return rows if most is None else min(rows, most)

    def read(self, limit: int | None) -> DataSet:
        """All rows, or ``limit`` good ones: drawn by the seed or the first, in file order.

        Raises:
            UserError, BadRows: as ``read_data``.
        """
        reading = _Reading(self)
        if limit is None:
            reading.take(None)
        else:
            self._take(reading, limit)
        return self._data_set(reading, limit)

    def _take(self, reading: "_Reading", limit: int) -> None:
        """Rows in the order in which they are drawn until ``limit`` of them are good."""
        rows = sum(self.counts())
        order: Sequence[int] = range(rows)
        if self.options.sample == "random" and limit < rows:
            order = drawn_order(rows, self.options.seed)
        taken = 0
        while taken < rows and len(reading.good) < limit:
            batch = order[taken : taken + limit - len(reading.good)]
            taken += len(batch)
            reading.take(set(batch))
            if reading.bad and not self.options.skip_bad_rows:
                return

    def _data_set(self, reading: "_Reading", limit: int | None) -> DataSet:
        options, name, reader = self.options, self.name, reading.reader
        good = [row for _, row in sorted(reading.good, key=lambda placed: placed[0])]
        bad_rows = [row for _, row in sorted(reading.bad, key=lambda placed: placed[0])]
        rejected = [row for row in bad_rows if not row.between]
        if bad_rows and not good:
            _check_header(reader, options, name, reading.label)
        reader.check(name)
        if bad_rows and (not options.skip_bad_rows or not good):
            raise BadRows(bad_rows, len(good) + len(rejected))
        if not good:
            raise UserError(f"{name}  holds no rows")
        notes = [*self.located.notes, *reading.notes, *reader.notes(len(good)), *self._drawn(len(good), limit)]
        return DataSet(
            path=options.path,
            conversations=good,
            rejected=rejected,
            file_format=reading.label,
            row_shape=" + ".join(shape for shape, _ in reader.shapes.most_common()),
            columns_used=list(reader.used),
            columns_not_used=[name for name in reader.columns_seen if name not in reader.used],
            fingerprint=reading.fingerprint(),
            notes=_lines([*notes, *reading.cells.notes(), *perhaps_empty(good)]),
            warnings=_lines([*_read_past([row for row in bad_rows if row.between]), *reading.warnings]),
            share=self.source.share,
        )

    def _drawn(self, taken: int, limit: int | None) -> list[str]:
        """A note on which rows were taken, where those are not all."""
        share, options = self.source.share, self.options
        rows = sum(self.counts()) if limit is not None else 0
        if isinstance(share, int) and share > rows:
            return [f"{options.path}: it holds {rows:,} rows only"]
        if limit is None or limit >= rows:
            return []
        why = f"{options.path}: " if share is not None or self._name_files else ""
        how = " (--max-samples)" if options.max_samples is not None else ""
        if options.sample == "first":
            return [f"{why}the first {taken:,} rows in file order{how}"]
        return [f"{why}{taken:,} of {rows:,} rows, drawn by the seed {options.seed}{how}"]

    def labelled(self, row: Conversation, file: str) -> Conversation:
        """The row with the source and the file that it is of, where there are several."""
        if not self._number and not self._name_files:
            return row
        return replace(row, source=self._number, file=file if self._name_files else "")


class _Reading:
    """What is found in the files of a source: good and bad rows by their places, over all passes."""

    def __init__(self, source: OpenSource) -> None:
        self._source = source
        self.reader, self.cells = RowReader(source.options), Cells()
        self.good: list[tuple[int, Conversation]] = []
        self.bad: list[tuple[int, BadRow]] = []
        self.labels: dict[str, None] = {}
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self._digests: dict[str, str] = {}

    @property
    def label(self) -> str:
        """The format of the files, or formats."""
        return " + ".join(self.labels)

    def fingerprint(self) -> str:
        """Of a single file its own digest, else that of the list of theirs."""
        each = list(self._digests.values())
        return each[0] if len(each) == 1 else hashlib.sha256("\n".join(each).encode("utf-8")).hexdigest()

    def take(self, wanted: Collection[int] | None) -> None:
        """Read the rows of the places ``wanted``, counted over all files; all of them for ``None``."""
        first = 0
        for number, file in enumerate(self._source.located.files):
            opened = open_file(file, self._source.options)
            self.labels[opened.label] = None
            self.notes += [note for note in opened.notes if note not in self.notes]
            self._digests[str(file.path)] = opened.digest
            rows = self._source.counts()[number] if wanted is not None else 0
            here = {place - first for place in wanted if first <= place < first + rows} if wanted is not None else None
            before = len(self.good) + len(self.bad)
            if here is None or here:
                self._read(file, opened, here, first)
                self.warnings += [told for told in opened.told() if told not in self.warnings]
            first += rows if wanted is not None else len(self.good) + len(self.bad) - before

    def _read(self, file: DataFile, opened: OpenFile, wanted: Collection[int] | None, first: int) -> None:
        for index, row in opened.rows(wanted):
            result = row if isinstance(row, BadRow) else _conversation_or_bad(row, self.reader, self.cells, file.name)
            if isinstance(result, BadRow):
                self.bad.append((first + index, result))
            else:
                self.good.append((first + index, self._source.labelled(result, file.name)))


def _lines(told: list[str]) -> list[str]:
    """What is told, fit for a screen and for a file: it quotes keys, which may hold anything."""
    return [on_one_line(sentence) for sentence in told]


def _read_past(faults: list[BadRow]) -> list[str]:
    """A warning for faults between rows, which were read past as asked."""
    if not faults:
        return []
    more = f", and {len(faults) - 1:,} more such places" if len(faults) > 1 else ""
    return [f"read past {faults[0].file}:{faults[0].line} {faults[0].reason}{more}: rows may be missing there"]


def _check(options: ReadOptions) -> None:
    check_fields(options.fields)
    if options.max_samples is not None and options.max_samples < 1:
        raise UserError(f"--max-samples {options.max_samples}: want 1 or more", "--max-samples 1000, or leave it out")


def _conversation_or_bad(row: Row, reader: RowReader, cells: Cells, name: str) -> Conversation | BadRow:
    empty = cells.without_value(row.columns)
    cleaned = row._replace(columns=cells.cleaned(row.columns, empty)) if empty else row
    try:
        conversation = reader.conversation(cleaned)
        _check_size(conversation)
    except RowRejected as fault:
        named = ", ".join(f'"{column}" is {text}' for column, text in list(empty.items())[:2])
        reason = f"{fault.reason} ({named}: read as empty)" if empty else fault.reason
        bad = RowRejected(reason, fix=fault.fix, excerpt=fault.excerpt)
        return bad.row(name, row.line, row.raw, row.number)
    except RecursionError:
        return RowRejected("brackets inside brackets, too deep to read").row(name, row.line, row.text, row.number)
    return replace(conversation, number=row.number) if row.number else conversation


def _check_size(conversation: Conversation) -> None:
    """Raise RowRejected for a row that no context holds and whose tokens would take gigabytes."""
    characters = len(conversation.text or "") + sum(len(message.content) for message in conversation.messages)
    if characters > MOST_CHARACTERS:
        reason = f"the row has {characters:,} characters; {MOST_CHARACTERS:,} is the most"
        raise RowRejected(reason, fix="cut it into rows")


def _check_header(reader: RowReader, options: ReadOptions, name: str, file_format: str) -> None:
    """Tell a table whose first line is no header, before telling every row."""
    columns = list(reader.columns_seen)
    if file_format != "CSV" or options.fields or not columns or set(columns) & set(KNOWN_COLUMNS):
        return
    if any(did_you_mean(column, KNOWN_COLUMNS) for column in columns[:20]):
        return
    raise UserError(
        f"{name}:1  names no column that is known: {quoted(columns)} (the first line must be a header)",
        "a first line such as prompt,completion or --field prompt=COLUMN --field completion=COLUMN",
    )
