"""Help on the terminal: the first screen by hand, everything else from the definitions. ASCII, 80 columns."""

from collections.abc import Callable, Iterable, Mapping
from textwrap import wrap
from typing import Any, get_args

from qlora_profiles.alias import Alias, Where
from qlora_profiles.aliases import aliases
from qlora_profiles.errors import UserError
from qlora_profiles.registry import Setting, allowed, flag, settings
from qlora_run.cli.commands import COMMANDS, OPTIONS, CommandSpec, Option, options_of
from qlora_run.cli.names import canonical, nearest, short_forms, spellings

WIDTH = 80
NAME_WIDTH = 24
"""Terminal cells: of a line, and of the column of names in it."""

SCOPES = {
    "recipe": "what is learned",
    "execution": "how this machine computes it; changes no result",
    "run": "where it goes and what is reported",
}

ROOT = """\
Turns your rows and the computer you have into a model you can talk to.

  qlora-run demo                          see it work here, no download
  qlora-run doctor                        what this machine can train
  qlora-run data --model M --data F       the rows, and what is learned of them
  qlora-run plan --model M --data F       what a run would do, and why
  qlora-run --auto --model M --data F     plan, then train

when it has trained
  qlora-run chat FOLDER                   talk to it
  qlora-run infer FOLDER --prompt TEXT    one answer
  qlora-run merge FOLDER                  one model of base and adapter
  qlora-run resume FOLDER                 go on after a stop
  qlora-run replay FOLDER                 the same run again

options
  --model M        a folder or a hub id        --data F    .jsonl .json .csv ...
  --output FOLDER  where the run goes          --config F  settings from a file
  --profile NAME   prepared for a machine      --recipe NAME  prepared learning
  --as NAME        plan for another machine
  --dry-run        write and train nothing     --json --yes for scripts

more
  qlora-run profiles [show|save NAME]     prepared for machines, and yours
  qlora-run recipes [show|save NAME]      prepared recipes, and yours
  qlora-run help SETTINGS                 every setting, with its default
  qlora-run help NAME                     one setting, group or command
Options of other training scripts are understood: docs/compatibility.md"""


def explain(topic: str | None) -> str:
    """Help on a topic: a command, a group, a setting, an option, a foreign name; ``None`` is the first screen.

    Raises:
        UserError: nothing is called that; names the nearest.
    """
    if topic is None:
        return ROOT
    name = canonical(topic)
    if name.lower() == "settings":
        return _settings_text(lambda setting: True)
    parts = [text for teller in _TELLERS if (text := teller(name))]
    if not parts:
        known = [*COMMANDS, *settings(), *(setting.doc.group for setting in settings().values())]
        known += [name for name, _ in aliases("train")]
        raise UserError(f"no help on {topic}{nearest(topic, known)}", "qlora-run help SETTINGS")
    return "\n\n".join(parts)


def shown_default(setting: Setting) -> str:
    """The default as a person writes it."""
    value = setting.default
    if setting.tuned:
        return "worked out"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def by_group(scope: str) -> dict[str, list[Setting]]:
    """The settings of a scope by group, in the order of their definition."""
    found: dict[str, list[Setting]] = {}
    for setting in settings().values():
        if setting.scope == scope:
            found.setdefault(setting.doc.group, []).append(setting)
    return found


def meaning_text(row: Alias) -> str:
    """What a foreign name is read as, in words: ``true: backend unsloth; false: backend peft``."""
    if row.part:
        return f"part of {row.to[0]}"
    if row.words and not row.to:
        return f"{', '.join(word.replace('null', 'none') for word in row.words)}: sets nothing; else refused"
    words: dict[str, list[str]] = {}
    for word, values in row.words.items():
        if values or word != "null":
            words.setdefault(_sets(values), []).append("none" if word == "null" else word)
    parts = [f"{', '.join(found)}: {sets}" for sets, found in words.items()]
    if row.to and row.open:
        parts.append(f"{'else ' if parts else ''}{row.to[0]}")
    return "; ".join(parts) or "sets nothing"


def _sets(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_plain(value)}" for name, value in values.items()) or "sets nothing"


def _plain(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return ",".join(value) or "none" if isinstance(value, tuple) else str(value)


def _entry(name: str, text: str) -> str:
    """``name`` and its text, wrapped beside it."""
    lines = wrap(text, WIDTH - NAME_WIDTH - 2, break_on_hyphens=False) or [""]
    head = f"  {name:<{NAME_WIDTH - 1}} "
    if len(name) > NAME_WIDTH - 1:
        return "\n".join([f"  {name}", *(" " * (NAME_WIDTH + 2) + line for line in lines)])
    return "\n".join([head + lines[0], *(" " * (NAME_WIDTH + 2) + line for line in lines[1:])])


def _setting_entry(setting: Setting) -> str:
    unit = f"{setting.doc.unit}; " if setting.doc.unit else ""
    return _entry(flag(setting), f"{setting.doc.help} ({unit}{allowed(setting)}) [{shown_default(setting)}]")


def _option_entry(option: Option, short: str | None) -> str:
    name = spellings(option.name)[0]
    return _entry(f"{short}, {name}" if short else name, option.setting.doc.help)


def _settings_text(wanted: Callable[[Setting], bool]) -> str:
    lines: list[str] = []
    for scope, about in SCOPES.items():
        groups = {group: [s for s in found if wanted(s)] for group, found in by_group(scope).items()}
        for group, found in groups.items():
            if found:
                lines += [f"{scope}: {group}  ({about})", *map(_setting_entry, found), ""]
    return "\n".join(lines).rstrip()


def _command_text(name: str) -> str:
    spec = COMMANDS.get(name)
    if spec is None:
        return ""
    command = "" if spec.name == "train" else f" {spec.name}"
    lines = [f"qlora-run{command} {spec.usage}".rstrip(), f"  {spec.about}", ""]
    short = short_forms(spec)
    lines += [_option_entry(option, short.get(option.name)) for option in _written_options(spec)]
    lines += ["  settings: qlora-run help SETTINGS"] if spec.scopes else []
    return "\n".join(lines).rstrip()


def _written_options(spec: CommandSpec) -> Iterable[Option]:
    """Options that are written with their name; places are in the usage already."""
    return [option for option in options_of(spec.name).values() if option.name not in ("show", "topic", "folder")]


def _group_text(name: str) -> str:
    return _settings_text(lambda setting: name in (setting.doc.group, setting.scope))


def _setting_text(name: str) -> str:
    setting = settings().get(name)
    if setting is None:
        return ""
    also = [row.name for row in aliases("train").values() if row.to[:1] == (name,) and row.name != name]
    lines = [flag(setting), *_indented(setting.doc.help), *_indented(f"{setting.scope}: {SCOPES[setting.scope]}")]
    lines += _indented(f"allowed: {allowed(setting)}" + (f"; in {setting.doc.unit}" if setting.doc.unit else ""))
    lines += _indented(f"default: {shown_default(setting)}")
    lines += _indented(f"also read as: {', '.join(sorted(also))}") if also else []
    return "\n".join(lines)


def _alias_text(name: str) -> str:
    if name in settings():
        return ""
    found: dict[str, list[str]] = {}
    for where in get_args(Where):
        for row in aliases(where).values():
            if row.name == name:
                found.setdefault("\n".join([*_indented(meaning_text(row)), *_indented(row.note)]), []).append(where)
    return "\n".join(f"{name}  (of other scripts, in {', '.join(where)})\n{text}" for text, where in found.items())


def _option_text(name: str) -> str:
    found = [option for option in OPTIONS if option.name == name and name not in settings() and name not in COMMANDS]
    return "\n".join(
        f"{_option_entry(option, None)}\n{_entry('', 'of ' + ', '.join(option.commands))}" for option in found
    )


def _indented(text: str) -> list[str]:
    return wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ")


_TELLERS = (_command_text, _setting_text, _option_text, _group_text, _alias_text)
