"""Words that belong to no option: the folder of ``chat``, the three places of a start script."""

from collections.abc import Callable

from qlora_profiles.errors import UserError
from qlora_run.cli.commands import SHAPES, Shape
from qlora_run.cli.names import help_for

Pair = tuple[str, str]
"""An option as written, and its text."""

CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
DATA_SUFFIXES = (".jsonl", ".csv", ".parquet")


def placed(shape: Shape, words: list[str]) -> list[Pair]:
    """The options that these words stand for. Raises UserError: a word too many."""
    return _PLACES.get(shape.name, _nowhere)(shape, words)


def _nowhere(shape: Shape, words: list[str]) -> list[Pair]:
    if words:
        raise UserError(f"{shape.name}: unexpected word {words[0]}", help_for(shape))
    return []


def _train(shape: Shape, words: list[str]) -> list[Pair]:
    """``CONFIG [DATA [OUTPUT]]``, as start scripts have it."""
    if not words:
        return []
    if words[0] in SHAPES:
        raise UserError(f"unexpected word {words[0]}; the command comes first", f"qlora-run {words[0]} ...")
    if not words[0].lower().endswith(CONFIG_SUFFIXES) or len(words) > 3:
        raise UserError(f"unexpected word {words[0]}; a list is written with commas: a,b", help_for(shape))
    return list(zip(("--config", "--data", "--output"), words, strict=False))


def _merge(shape: Shape, words: list[str]) -> list[Pair]:
    """``FOLDER``, or ``BASE ADAPTER OUTPUT [DTYPE [VALIDATE]]``."""
    if len(words) == 1:
        return [("--adapter", words[0])]
    if words and not 3 <= len(words) <= 5:
        raise UserError(f"merge: unexpected word {words[1]}", "qlora-run merge FOLDER [-o OUTPUT]")
    return list(zip(("--base", "--adapter", "--output", "--dtype", "--validate"), words, strict=False))


def _profiles(shape: Shape, words: list[str]) -> list[Pair]:
    """Nothing, ``show NAME``, or ``save NAME``."""
    if words and (words[0] not in ("show", "save") or len(words) != 2):
        raise UserError(f"profiles: unexpected word {words[-1]}", "qlora-run profiles show NAME, or save NAME")
    return [(f"--{words[0]}", words[1])] if words else []


def _one(option: str) -> Callable[[Shape, list[str]], list[Pair]]:
    def places(shape: Shape, words: list[str]) -> list[Pair]:
        _nowhere(shape, words[1:])
        return [(option, word) for word in words]

    return places


_PLACES: dict[str, Callable[[Shape, list[str]], list[Pair]]] = {
    "train": _train,
    "merge": _merge,
    "profiles": _profiles,
    "chat": _one("--adapter"),
    "infer": _one("--adapter"),
    "resume": _one("--folder"),
    "replay": _one("--folder"),
    "help": _one("--topic"),
}
