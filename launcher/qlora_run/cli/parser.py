"""The command line: words to a ``Command``, every mistake one line.

argparse cuts the words; which options exist comes from the settings, the foreign names and ``commands.OPTIONS``.
Dashes and underscores are the same. A true/false option is read as ``--merge``, ``--merge false`` or ``--no-merge``.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from qlora_profiles.alias import FALSE_WORDS, TRUE_WORDS
from qlora_profiles.aliases import aliases
from qlora_profiles.errors import UserError
from qlora_profiles.registry import parse
from qlora_run.cli.commands import COMMANDS, Command, CommandSpec, Option, options_of
from qlora_run.cli.names import canonical, help_for, nearest, options_taken, short_forms, spellings, unknown_option
from qlora_run.cli.places import CONFIG_SUFFIXES, DATA_SUFFIXES, Pair, positional_options

HELP_WORDS = ("-h", "--help")
NEEDED = {"resume": "folder", "replay": "folder", "merge": "adapter"}


def parse_command(argv: Sequence[str]) -> Command:
    """The command that ``argv`` (without the program's name) asks for.

    Raises:
        UserError: an unknown command or option, a value missing or not allowed; names the nearest known name.
    """
    if not argv or argv[0] in HELP_WORDS:
        return _help(None)
    spec, words = _spec_of(list(argv))
    if any(word in HELP_WORDS for word in words):
        return _help(None if spec.name == "train" else spec.name)
    pairs, places = _split(spec, words)
    return _command(spec, pairs + positional_options(spec, places))


def _help(topic: str | None) -> Command:
    return Command(name="help", options={"topic": topic}, given_options=("topic",) if topic else ())


def _spec_of(words: list[str]) -> tuple[CommandSpec, list[str]]:
    first = words[0]
    if first in ("--version", "-V"):
        return COMMANDS["version"], []
    if first in COMMANDS:
        return COMMANDS[first], words[1:]
    if first.startswith("-") or first.lower().endswith(CONFIG_SUFFIXES):
        return COMMANDS["train"], words
    if first.lower().endswith(DATA_SUFFIXES):
        raise UserError(f"{first} is no command", f"qlora-run --auto --model MODEL --data {first}")
    raise UserError(f"unknown command {first}{nearest(first, COMMANDS)}", "qlora-run --help")


def _split(spec: CommandSpec, words: list[str]) -> tuple[list[Pair], list[str]]:
    """(options with their text, words that belong to no option)."""
    takes = options_taken(spec)
    flags = {form for name, kind in takes.items() if kind == "flag" for form in spellings(name)}
    try:
        found, rest = _argument_parser(spec).parse_known_args(_with_values(words, flags), argparse.Namespace(pairs=[]))
    except argparse.ArgumentError as error:
        name = (error.argument_name or "").split("/")[0]
        wrong = "takes no value" if error.message.startswith("ignored") else "needs a value"
        raise UserError(f"{name} {wrong}", help_for(spec)) from error
    for word in rest:
        if word.startswith("-") and len(word) > 1 and word != "--":
            raise unknown_option(spec, word.split("=")[0])
    return list(found.pairs), [word for word in rest if word != "--"]


class _Collect(argparse.Action):
    """Keeps each option as it was written, in order; ``-o`` in full."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        written = option_string or ""
        namespace.pairs.append((written if written.startswith("--") else self.option_strings[0], values))


class _Negate(argparse.Action):
    """``--no-merge`` and ``--no_merge`` are ``--merge false``."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.pairs.append((f"--{(option_string or '')[5:]}", "false"))


def _argument_parser(spec: CommandSpec) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    short = short_forms(spec)
    for name, takes in options_taken(spec).items():
        forms = [*spellings(name), *([short[name]] if name in short else [])]
        if takes == "either":
            parser.add_argument(*forms, action=_Collect, dest="pairs", nargs="?", const="true")
        else:
            parser.add_argument(*forms, action=_Collect, dest="pairs")
        if takes == "flag":
            negated = [f"--no{dash}{form[2:]}" for form in spellings(name) for dash in "-_"]
            parser.add_argument(*negated, action=_Negate, dest="pairs", nargs=0)
    return parser


def _with_values(words: list[str], flags: set[str]) -> list[str]:
    """``--merge`` becomes ``--merge=true``: what follows is its value only if it says true or false."""
    done: list[str] = []
    left = iter(zip(words, [*words[1:], ""], strict=False))
    for word, following in left:
        value = following.lower()
        if word not in flags:
            done.append(word)
        elif value in TRUE_WORDS + FALSE_WORDS:
            done.append(f"{word}={value}")
            next(left)
        else:
            done.append(f"{word}=true")
    return done


def _command(spec: CommandSpec, pairs: list[Pair]) -> Command:
    """Options typed, settings left as written."""
    known = options_of(spec.name)
    given_options: dict[str, Pair] = {}
    values = {name: option.setting.default for name, option in known.items()}
    given: list[Pair] = []
    for written, raw in pairs:
        option = _option_meant(spec, known, written)
        if option is None:
            given.append((written, raw))
            continue
        values[option.name] = parse_option(option, raw, written)
        _refuse_two_names(given_options.get(option.name), (written, raw))
        given_options[option.name] = (written, raw)
    _refuse_incomplete(spec, values)
    name = "chat" if values.get("chat") else spec.name
    return Command(name=name, options=values, given_options=tuple(given_options), raw_settings=tuple(given))


def _option_meant(spec: CommandSpec, known: dict[str, Option], written: str) -> Option | None:
    name = canonical(written)
    row = aliases(spec.where).get((name, None))
    return known.get(name) or (known.get(row.to[0]) if row and row.to else None)


def parse_option(option: Option, raw: Any, written: str) -> Any:
    """The typed value of an option that is no setting.

    Raises:
        UserError: a value of another type or out of range; names the option as it was ``written``.
    """
    try:
        return parse(option.setting, raw)
    except UserError as error:
        raise UserError(error.message.replace(f"{option.name}:", f"{written}:", 1), error.fix) from error


def _refuse_two_names(before: Pair | None, now: Pair) -> None:
    """The same option twice: the last counts. Two names of one option: they must agree."""
    if before and before[1] != now[1] and canonical(before[0]) != canonical(now[0]):
        raise UserError(f"{before[0]} {before[1]} contradicts {now[0]} {now[1]}", "remove one of them")


def _refuse_incomplete(spec: CommandSpec, values: dict[str, Any]) -> None:
    needed = NEEDED.get(spec.name)
    if needed and values[needed] is None:
        raise UserError(f"{spec.name} needs a folder", f"qlora-run {spec.name} {spec.usage}")
