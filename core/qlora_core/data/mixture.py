"""All sources of a recipe as one data set: each with its share, in the order in which they are named."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec.structs import replace

from qlora_core.data.bad_rows import BadRow
from qlora_core.data.draw import apportioned, filled
from qlora_core.data.facts import source_facts
from qlora_core.data.read import OpenSource, read_data
from qlora_core.data.schema import Conversation, DataSet, ReadOptions
from qlora_profiles.errors import UserError
from qlora_profiles.settings import Recipe


def read_all(recipe: Recipe) -> DataSet:
    """The rows of the recipe's sources, one after another.

    Raises:
        UserError: a source is named twice, or one cannot be read (as ``read_data``).
        BadRows: as ``read_data``, of the first source that has some.
    """
    options = [ReadOptions.from_recipe(recipe, text) for text in recipe.data]
    if len(options) == 1:
        return read_data(options[0])
    sources = [OpenSource(each, number, name_files=True) for number, each in enumerate(options)]
    check_once(sources)
    limits = _limits(sources, recipe)
    return _together([source.read(limit) for source, limit in zip(sources, limits, strict=True)])


def check_once(sources: Sequence[OpenSource]) -> None:
    """Raise UserError where a file, or a part of one, belongs to two sources: its rows would count twice."""
    seen: dict[tuple[Path, str], OpenSource] = {}
    for source in sources:
        for file in source.located.files:
            key = (file.path.resolve(), file.part)
            if key in seen:
                first, again = seen[key].source.text, source.source.text
                what = "twice" if first == again else f"and --data {again}: both read {file.name}"
                raise UserError(f"--data {first}  {what}", "name it once; --epochs 2 learns every row twice")
            seen[key] = source


def _limits(sources: Sequence[OpenSource], recipe: Recipe) -> list[int | None]:
    """How many rows of each source are taken; ``None`` where all are, which nobody has to count."""
    if recipe.max_samples is None:
        return [source.most() if source.source.share is not None else None for source in sources]
    counts = [source.share_of_all() for source in sources]
    share_out = apportioned if recipe.sample == "random" else filled
    limits = share_out(recipe.max_samples, counts)
    for source, limit in zip(sources, limits, strict=True):
        if not limit:
            said = f"--max-samples {recipe.max_samples}: no row is left for {source.source.text}"
            raise UserError(said, f"--max-samples {sum(counts)}, or without that source")
    return list(limits)


def _together(parts: Sequence[DataSet]) -> DataSet:
    shapes = {part.path: part.row_shape for part in parts}
    notes = [note for part in parts for note in part.notes]
    if len(set(shapes.values())) > 1:
        notes.append("sources of several shapes: " + "; ".join(f"{path}: {shape}" for path, shape in shapes.items()))
    sources = tuple(source_facts(part) for part in parts)
    return DataSet(
        path=", ".join(part.path for part in parts),
        conversations=[row for part in parts for row in part.conversations],
        rejected=[row for part in parts for row in part.rejected],
        file_format=_each(part.file_format for part in parts),
        row_shape=_each(shapes.values()),
        columns_used=list(dict.fromkeys(column for part in parts for column in part.columns_used)),
        columns_not_used=list(dict.fromkeys(column for part in parts for column in part.columns_not_used)),
        fingerprint="",
        notes=notes,
        warnings=[warning for part in parts for warning in part.warnings],
        sources=sources,
    )


def _each(words: Iterable[str]) -> str:
    return " + ".join(dict.fromkeys(words))


def without(dataset: DataSet, rows: Sequence[Conversation], rejected: list[BadRow]) -> DataSet:
    """The data set with ``rows`` alone, counted for each source; ``rejected`` are all that were set aside."""
    lost = [0] * len(dataset.sources)
    if lost:
        for row in dataset.conversations:
            lost[row.source] += 1
        for row in rows:
            lost[row.source] -= 1
    sources = (
        replace(source, rows=source.rows - less, rows_rejected=source.rows_rejected + less)
        for source, less in zip(dataset.sources, lost, strict=True)
    )
    return replace(dataset, conversations=list(rows), rejected=rejected, sources=tuple(sources))
