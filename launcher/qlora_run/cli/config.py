"""Config files: YAML or JSON, nested sections or none, every mistake with its line.

Values stay text, as they stand in the file: the settings' own types read them, the same as on the command line.
So ``2e-4`` is a number (YAML 1.1 would call it text), ``revision: 0123`` keeps its zero and ``no`` is a word.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from msgspec import Struct

from qlora_profiles.alias import word_of
from qlora_profiles.aliases import SECTIONS, find, known_names
from qlora_profiles.errors import UserError
from qlora_profiles.plan import Written
from qlora_profiles.registry import settings
from qlora_profiles.small_file import check_levels, read_small
from qlora_profiles.suggest import hint_beside
from qlora_run.cli.commands import CONFIG_OPTIONS, options_of
from qlora_run.cli.level import LEFT_OUT, located
from qlora_run.cli.names import canonical, nearest
from qlora_run.cli.parser import parse_option

_NULL = "tag:yaml.org,2002:null"
_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "timestamp", "seq")}


class ConfigFile(Struct, frozen=True, kw_only=True):
    """A config file's settings as written, and the options in it that are no settings, typed."""

    name: str
    written: tuple[Written, ...]
    options: dict[str, Any]


def load_config(path: Path, name: str) -> ConfigFile:
    """Read a config file; ``name`` is what it is called in errors.

    Raises:
        UserError: no such file, not UTF-8, not YAML or JSON, an unknown or repeated key.
    """
    entries = _entries(path, name)
    options = {entry.name: _option(entry) for entry in entries if _is_option(entry) and word_of(entry.raw) != "null"}
    return ConfigFile(name=name, options=options, written=tuple(entry for entry in entries if not _is_option(entry)))


def _is_option(written: Written) -> bool:
    return written.family is None and written.name in CONFIG_OPTIONS


def _option(written: Written) -> Any:
    try:
        return parse_option(options_of("train")[written.name], written.raw, written.label)
    except UserError as error:
        raise UserError(located(written.place, error.message), error.fix) from error


def _text(path: Path, name: str) -> str:
    try:
        return read_small(path, f"--config {name}").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 from byte {error.start}", "save it as UTF-8") from error
    except OSError as error:
        reason = f"no such file{hint_beside(path)}" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(f"--config {name}: {reason}") from error


def _entries(path: Path, name: str) -> list[Written]:
    """The settings of a file in order, sections opened, every key checked."""
    text = _text(path, name)
    is_json = path.suffix.lower() == ".json"
    check_levels(text.replace("\t", " ") if is_json else text, name)
    try:
        root = yaml.compose(text.replace("\t", " ") if is_json else text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = f"not {'JSON' if is_json else 'YAML'}: {error.problem or error.context}"
        raise UserError(located(f"{name}:{line}", problem)) from error
    except yaml.YAMLError as error:
        raise UserError(f"{name}: not YAML: {' '.join(str(error).split())}") from error
    return [] if root is None or _is_null(root) else list(_Reader(name, text if is_json else None).entries(root))


class _Reader:
    """Walks the nodes of one file: they know their lines, plain values do not.

    ``json_text`` is the file's text if it is JSON: strings are then read by JSON's own rules.
    """

    def __init__(self, name: str, json_text: str | None) -> None:
        self.name, self.json_text = name, json_text

    def entries(self, root: yaml.Node) -> Iterator[Written]:
        """Settings and options of the whole file, in order.

        Raises:
            UserError: an unknown or repeated key, or a value that is no text, number or list; with the line.
        """
        for key, node in self._items(root, "a config file"):
            if key.value not in SECTIONS or _names_an_option(key, node):
                yield self._written(key, node, None)
            elif not _is_null(node):
                for inner, leaf in self._items(node, f"section {key.value}"):
                    yield self._written(inner, leaf, key.value)

    def _items(self, node: yaml.Node, what: str) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
        """Key and value nodes of a mapping; a key twice is refused."""
        if not isinstance(node, yaml.MappingNode):
            raise self._error(node, f"{what} holds names with values, like  epochs: 3")
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key, "a name is needed here, like  epochs: 3")
            name = canonical(key.value)
            if name in lines:
                raise self._error(key, f"{key.value} is already set in line {lines[name]}")
            lines[name] = key.start_mark.line + 1
        return list(node.value)

    def _written(self, key: yaml.ScalarNode, node: yaml.Node, section: str | None) -> Written:
        name, family = canonical(key.value), SECTIONS[section] if section else None
        row = find(name, "train", family)
        if not (row or name in settings() or (section is None and name in CONFIG_OPTIONS)):
            raise self._error(key, self._unknown(key.value, family))
        label = f"{section}.{key.value}" if section else key.value
        raw = LEFT_OUT if row and not row.to and not row.words else self._value(node, label)
        return Written(name=name, raw=raw, label=label, place=self._place(key), family=family)

    def _unknown(self, key: str, family: str | None) -> str:
        if key in SECTIONS:
            return f"{key} is a section of its own, not a part of another one"
        known = [*settings(), *CONFIG_OPTIONS, *known_names("train", (None, family)), *SECTIONS]
        return f"unknown key {key}{nearest(key, known)}"

    def _value(self, node: yaml.Node, label: str) -> Any:
        """Text, a list of texts, or None; the columns of ``field`` may be written as a mapping."""
        if isinstance(node, yaml.SequenceNode) and node.tag in _PLAIN_TAGS:
            return [self._scalar(entry, label) for entry in node.value]
        if isinstance(node, yaml.MappingNode) and label.endswith("field"):
            return [f"{key.value}={self._scalar(value, label)}" for key, value in self._items(node, label)]
        return self._scalar(node, label)

    def _scalar(self, node: yaml.Node, label: str) -> str | None:
        if not isinstance(node, yaml.ScalarNode) or node.tag not in _PLAIN_TAGS:
            raise self._error(node, f"{label} takes a value, or a list of values")
        if _is_null(node):
            return None
        if self.json_text is None or node.style != '"':
            return str(node.value)
        try:
            return str(json.loads(self.json_text[node.start_mark.index : node.end_mark.index]))
        except ValueError as error:
            raise self._error(node, f"not JSON: {error}") from error

    def _place(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}"

    def _error(self, node: yaml.Node, message: str) -> UserError:
        return UserError(located(self._place(node), message))


def _names_an_option(key: yaml.ScalarNode, node: yaml.Node) -> bool:
    """``recipe: NAME`` is an option, ``recipe:`` with names below it a section."""
    return key.value in CONFIG_OPTIONS and isinstance(node, yaml.ScalarNode) and not _is_null(node)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _NULL
