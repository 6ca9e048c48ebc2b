"""What a JSON file really holds, whatever it is called: a row a line, a list, objects one after another, or one
object that holds all rows."""

from collections.abc import Mapping

from qlora_core.data.bad_rows import RowRejected
from qlora_core.data.sources.formats import Rows
from qlora_core.data.sources.json_object import broken_list, rows_held
from qlora_core.data.sources.json_rows import Elements, is_line_by_line, lines_rows
from qlora_core.data.sources.json_text import parse_value


def json_rows(text: str, name: str, fields: Mapping[str, str] | None = None) -> tuple[str, Rows, list[str]]:
    """The layout (``JSON`` or ``JSONL``), the rows, and what a person should know of where they were.

    ``fields`` maps wanted names to the columns or message keys that hold them.

    Raises:
        UserError: one object holds rows where they cannot be read without a guess.
    """
    elements = Elements(text, name)
    start = elements.skip(0)
    if text.startswith("{", start):
        try:
            value, end = parse_value(text, start)
        except RowRejected:
            if found := broken_list(text, start):
                key, at = found
                return "JSON", elements.list_at(at), [f'{name}: the rows are those under "{key}"']
        else:
            if elements.skip(end) == len(text) and isinstance(value, dict):
                held = rows_held(text, name, start, value, fields or {})
                if held is not None:
                    return "JSON", held.rows, held.notes
    if is_line_by_line(text):
        return "JSONL", lines_rows(text, name), []
    return "JSON", elements.all(), []
