"""The columns of a row under the names that are known here, whatever the file calls them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from qlora_core.data.rows.column_names import CANONICAL, fold
from qlora_core.data.rows.values import is_empty
from qlora_core.data.schema import ReadOptions

Columns = dict[str, Any]


class Renamed(NamedTuple):
    """A row's filled columns. ``own`` tells the file's names of those known.

    ``dropped`` are left out because a person says so; ``replaced`` have a name that ``--field`` gave to another column.
    ``names`` are the file's names where they alone decide all of this, as in the rows of nearly every file.
    """

    columns: Columns
    own: dict[str, str]
    dropped: Columns
    replaced: Columns
    names: tuple[str, ...] | None = None


KEPT_LAYOUTS = 256  # sets of names that are remembered: rows that leave out what is empty have several


class Renaming:
    """Gives columns their known names: by ``--field``, by their own name, or by another spelling of one."""

    def __init__(self, options: ReadOptions) -> None:
        self._ignored = frozenset(options.ignore)
        self._wanted = {column: wanted for wanted, column in options.fields.items()}
        self._names: dict[str, str | None] = {}
        self._layouts: dict[tuple[str, ...], tuple[list[str], dict[str, str]] | None] = {}

    def renamed(self, columns: Mapping[str, Any]) -> Renamed:
        """A row's columns; ``null`` counts as absent. Of two spellings of a name, the mapped wins, then the exact."""
        found = Renamed({}, {}, {}, {})
        filled = {name: value for name, value in columns.items() if value is not None}
        names = tuple(filled)
        layout = self._layout(names)
        if layout is not None:
            known_names, own = layout
            return Renamed(dict(zip(known_names, filled.values(), strict=True)), own, {}, {}, names)
        for name in sorted(filled, key=self._rank):
            self._place(name, filled[name], found)
        known = {own: name for name, own in found.own.items()}
        in_order = (known.get(name, name) for name in filled)
        return found._replace(columns={name: found.columns[name] for name in in_order if name in found.columns})

    def _layout(self, names: tuple[str, ...]) -> tuple[list[str], dict[str, str]] | None:
        """The known names of columns and their own, where no two share one and none is left out."""
        if names not in self._layouts:
            if len(self._layouts) >= KEPT_LAYOUTS:
                self._layouts.clear()
            self._layouts[names] = self._simple(names)
        return self._layouts[names]

    def _simple(self, names: tuple[str, ...]) -> tuple[list[str], dict[str, str]] | None:
        known = [self._known(name) for name in names]
        given = [wanted for wanted in known if wanted]
        taken = set(self._wanted.values())
        replaced = any(wanted in taken and name not in self._wanted for name, wanted in zip(names, known, strict=True))
        if replaced or len(set(given)) < len(given) or self._ignored.intersection(names):
            return None
        own = {wanted: name for name, wanted in zip(names, known, strict=True) if wanted}
        return [wanted or name for name, wanted in zip(names, known, strict=True)], own

    def _rank(self, name: str) -> int:
        return 0 if name in self._wanted else 1 if CANONICAL.get(name) == name else 2

    def _place(self, name: str, value: Any, found: Renamed) -> None:
        known = self._known(name)
        if name in self._ignored:
            found.dropped[name] = value
        elif known is None:
            found.columns[name] = value
        elif name not in self._wanted and known in self._wanted.values():
            found.replaced[name] = value
        elif known in found.columns and not is_empty(found.columns[known]):
            found.columns[name] = value
        else:
            found.columns[known] = value
            found.own[known] = name

    def _known(self, name: str) -> str | None:
        if name not in self._names:
            self._names[name] = self._wanted.get(name) or CANONICAL.get(fold(name))
        return self._names[name]
