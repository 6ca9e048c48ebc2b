"""Positional words, which belong to no option: the folder of ``chat``, the three places of a start script."""

from collections.abc import Callable

from qlora_profiles.errors import UserError
from qlora_run.cli.commands import COMMANDS, CommandSpec
from qlora_run.cli.names import help_for

Pair = tuple[str, str]
"""An option as written, and its text."""

CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
DATA_SUFFIXES = (".jsonl", ".csv", ".parquet")


def positional_options(spec: CommandSpec, words: list[str]) -> list[Pair]:
    """The options that positional words stand for.

    Raises:
        UserError: a word too many, or one that has no place in this command.
    """
    return _POSITIONALS.get(spec.name, _nowhere)(spec, words)


def _nowhere(spec: CommandSpec, words: list[str]) -> list[Pair]:
    if words:
        raise UserError(f"{spec.name}: unexpected word {words[0]}", help_for(spec))
    return []


def _train(spec: CommandSpec, words: list[str]) -> list[Pair]:
    """``CONFIG [DATA [OUTPUT]]``, as start scripts have it."""
    if not words:
        return []
    if words[0] in COMMANDS:
        raise UserError(f"unexpected word {words[0]}; the command comes first", f"qlora-run {words[0]} ...")
    if not words[0].lower().endswith(CONFIG_SUFFIXES) or len(words) > 3:
        raise UserError(f"unexpected word {words[0]}; a list is written with commas: a,b", help_for(spec))
    return list(zip(("--config", "--data", "--output"), words, strict=False))


def _merge(spec: CommandSpec, words: list[str]) -> list[Pair]:
    """``FOLDER``, or ``BASE ADAPTER OUTPUT [DTYPE [VALIDATE]]``."""
    if len(words) == 1:
        return [("--adapter", words[0])]
    if words and not 3 <= len(words) <= 5:
        raise UserError(f"merge: unexpected word {words[1]}", "qlora-run merge FOLDER [-o OUTPUT]")
    return list(zip(("--base", "--adapter", "--output", "--dtype", "--validate"), words, strict=False))


def _catalogue(spec: CommandSpec, words: list[str]) -> list[Pair]:
    """Nothing or ``list``, ``show NAME``, or ``save NAME``."""
    if words in ([], ["list"]):
        return []
    if words[0] not in ("show", "save") or len(words) != 2:
        raise UserError(f"{spec.name}: unexpected word {words[-1]}", f"qlora-run {spec.name} show NAME, or save NAME")
    return [(f"--{words[0]}", words[1])]


def _data(spec: CommandSpec, words: list[str]) -> list[Pair]:
    """``FILE``, any number of times."""
    return [("--data", word) for word in words]


def _one(option: str) -> Callable[[CommandSpec, list[str]], list[Pair]]:
    def places(spec: CommandSpec, words: list[str]) -> list[Pair]:
        _nowhere(spec, words[1:])
        return [(option, word) for word in words]

    return places


_POSITIONALS: dict[str, Callable[[CommandSpec, list[str]], list[Pair]]] = {
    "train": _train,
    "merge": _merge,
    "profiles": _catalogue,
    "recipes": _catalogue,
    "data": _data,
    "chat": _one("--adapter"),
    "infer": _one("--adapter"),
    "resume": _one("--folder"),
    "replay": _one("--folder"),
    "help": _one("--topic"),
}
