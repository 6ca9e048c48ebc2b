"""What an inspection of data says, in sentences: the same on the terminal and on the page."""

from collections.abc import Iterator

from qlora_core.data import Bin, Inspection, SetAside, ShownRow
from qlora_profiles.facts import SourceFacts
from qlora_run.report.formatting import shown_path

LINES_TOLD = 5
"""Rows set aside for one reason that are named by their lines."""
NAMES_TOLD = 12
"""Columns named."""


def title(found: Inspection) -> str:
    """The model, where there is one, and the data."""
    paths = ", ".join(shown_path(source.path) for source in found.sources)
    return f"{shown_path(found.model)} · {paths}" if found.model else paths


def facts(found: Inspection) -> Iterator[tuple[str, str]]:
    """A label and a sentence for everything that is known of the rows but the rows themselves."""
    yield "rows", _rows(found)
    if len(found.sources) > 1:
        yield from (("from", f"{shown_path(source.path)}: {source.rows:,} {_form(source)}") for source in found.sources)
    if found.learned:
        yield "template", found.learned
    if found.stop_token and found.template:
        yield "stop token", found.stop_token
    yield "learned", f"{_share(found.learned_share)} of {found.lengths.unit}"
    yield "lengths", _lengths(found)
    if found.cuts:
        yield "cut", _cut(found)
    yield "columns", _columns(found)
    yield "duplicates", _duplicates(found)
    yield "answers", _answers(found)


def _rows(found: Inspection) -> str:
    held_out = f"{found.held_out_rows:,} held out" if found.held_out_rows else "none held out"
    aside = f"; {found.rows_set_aside:,} set aside" if found.rows_set_aside else ""
    form = f" {_form(found.sources[0])}" if len(found.sources) == 1 else ""
    return f"{found.rows:,}{form}: {found.train_rows:,} to train on, {held_out}{aside}"


def _form(source: SourceFacts) -> str:
    return f"of {source.row_shape} ({source.file_format})"


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def _lengths(found: Inspection) -> str:
    lengths = found.lengths
    at = lengths.quantiles
    unit = lengths.unit
    if at[0] == at[10]:
        return f"{at[0]:,} {unit}, every row"
    said = f"{at[0]:,} to {at[10]:,} {unit}; half up to {at[5]:,}, 9 of 10 up to {at[9]:,}; mean {lengths.mean:,.0f}"
    if lengths.counted_rows is None:
        return said
    return f"{said}; counted in {lengths.counted_rows:,} rows, the others taken to be alike"


def _cut(found: Inspection) -> str:
    cuts = found.cuts
    assert cuts is not None
    about = "about " if found.lengths.counted_rows is not None else ""
    if not cuts.rows:
        return f"none at --max-length {cuts.max_length:,}"
    share = cuts.learned_lost / max(cuts.learned, 1)
    lost = f"{about}{cuts.learned_lost:,} of {cuts.learned:,} learned tokens ({_share(share)})"
    said = f"{about}{_counted(cuts.rows)} at --max-length {cuts.max_length:,}; they lose {lost}"
    return f"{said}; {_counted(cuts.rows_dropped)} with nothing left to learn dropped" if cuts.rows_dropped else said


def _columns(found: Inspection) -> str:
    used = f"used {_names(found.columns_used)}"
    return f"{used}; not used {_names(found.columns_not_used)}" if found.columns_not_used else f"{used}; no others"


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(names[:NAMES_TOLD]) + (f" and {len(names) - NAMES_TOLD} more" if len(names) > NAMES_TOLD else "")


def _duplicates(found: Inspection) -> str:
    twice = found.duplicates
    if not twice.rows:
        return "no row stands twice"
    said = f"{_counted(twice.rows)} {'equals' if twice.rows == 1 else 'equal'} an earlier one, to the letter"
    if not twice.held_out:
        return said
    of = f"{twice.held_out:,} of {found.held_out_rows:,} held-out rows {'is' if twice.held_out == 1 else 'are'}"
    return f"{said}; {of} trained on as well, so the held-out loss flatters"


def _answers(found: Inspection) -> str:
    answers = found.answers
    said = f"{answers.count:,} learned"
    if answers.short:
        often = ", ".join(f'"{answer.text}" {answer.count:,}' for answer in answers.most_frequent_short)
        said += f"; {answers.short:,} short ({often})"
    if answers.wordless:
        said += f"; {answers.wordless:,} without a letter or digit"
    return said if answers.short else f"{said}; none is short"


def _counted(rows: int) -> str:
    return f"{rows:,} {'row' if rows == 1 else 'rows'}"


def set_aside(found: Inspection) -> Iterator[str]:
    """Why rows were set aside, the rows that share a reason together."""
    alike: dict[tuple[str, str, str], list[SetAside]] = {}
    for row in found.set_aside:
        alike.setdefault((row.file, row.reason, row.fix), []).append(row)
    for (file, reason, fix), rows in alike.items():
        lines = ", ".join(f"{row.line:,}" for row in rows[:LINES_TOLD]) + (", ..." if len(rows) > LINES_TOLD else "")
        way_on = f"  -> {fix}" if fix else ""
        yield f"{_counted(len(rows))} of {file} (line {lines}): {reason}{way_on}"
    if found.rows_set_aside > len(found.set_aside):
        yield f"and {_counted(found.rows_set_aside - len(found.set_aside))} more"


def row_title(row: ShownRow, found: Inspection) -> str:
    """``longest: line 12, 812 tokens, 300 learned, held out``."""
    number = f", row {row.number:,}" if row.number else ""
    held_out = ", held out" if row.held_out else ""
    length = f"{row.length:,} {found.lengths.unit}, {row.learned:,} learned"
    return f"{', '.join(row.why)}: line {row.line:,}{number}, {length}{held_out}"


def bin_labels(found: Inspection) -> list[str]:
    """The histogram's bins: ``0 - 49``, and ``500 or more`` for a tail."""
    return [_bin_label(one) for one in found.lengths.histogram]


def _bin_label(one: Bin) -> str:
    if one.high is None:
        return f"{one.low:,} or more"
    return f"{one.low:,} - {one.high:,}" if one.high > one.low else f"{one.low:,}"
