"""The layout stays what it is said to be: floors, no cycle, the names on the pages, and files of a readable size."""

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest
from importlinter import configuration
from importlinter.application import use_cases

from qlora_profiles.registry import settings
from qlora_run.cli.commands import COMMANDS
from qlora_run.cli.help import explain

ROOT = Path(__file__).parents[1]
PACKAGES = ("qlora_run", "qlora_core", "qlora_profiles")
PACKAGE_FOLDERS = ("launcher/qlora_run", "core/qlora_core", "profiles/qlora_profiles", "dev/make_demo")
SOURCE_FOLDERS = ("launcher", "core", "profiles", "dev", "bench", "tests")
LONGEST_FILE, LONGEST_FUNCTION = 400, 60
"""Lines."""

Imports = Mapping[str, Collection[str]]
"""Module -> the modules that it imports, wherever in the file and for whatever purpose."""


def cycles(imports: Imports) -> list[str]:
    """Every cycle found: between modules, and between neighbours in a package, at each depth."""
    levels = [imports, *(_between_neighbours(imports, package) for package in _packages(imports))]
    return list(dict.fromkeys(found for level in levels if (found := _cycle(level))))


def _packages(imports: Imports) -> set[str]:
    """Everything that modules lie in; the empty name holds the top packages."""
    return {name.rpartition(".")[0] for module in imports for name in _with_parents(module)}


def _with_parents(module: str) -> Iterator[str]:
    parts = module.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _between_neighbours(imports: Imports, package: str) -> dict[str, set[str]]:
    """What the children of ``package`` import of each other, each with all that lies in it."""
    found: dict[str, set[str]] = {}
    for module, targets in imports.items():
        child = _child(module, package)
        if child is not None:
            children = {_child(target, package) for target in targets} - {child, None}
            found.setdefault(child, set()).update(name for name in children if name)
    return found


def _child(module: str, package: str) -> str | None:
    prefix = f"{package}." if package else ""
    return prefix + module.removeprefix(prefix).partition(".")[0] if module.startswith(prefix) else None


def _cycle(imports: Imports) -> str | None:
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return " -> ".join(reversed(error.args[1]))
    return None


def imports_of(*packages: str) -> dict[str, set[str]]:
    """Every import within ``packages``: at the top, in functions, and for typing alone."""
    graph = grimp.build_graph(*packages, cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


@cache
def modules() -> frozenset[str]:
    """Every module and package of ours by its full name."""
    return frozenset(imports_of(*PACKAGES))


def lint(config: Path) -> bool:
    """Whether the import contracts of a config file hold; says on standard output which do not."""
    configuration.configure()
    return bool(use_cases.lint_imports(config_filename=str(config), cache_dir=None, no_logo=True))


def test_the_import_contracts_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert lint(ROOT / "pyproject.toml"), capsys.readouterr().out


def test_a_contract_that_is_broken_is_found(tmp_path: Path) -> None:
    upside_down = tmp_path / "pyproject.toml"
    contract = '[[tool.importlinter.contracts]]\nname = "upside down"\ntype = "layers"\n'
    layers = 'layers = ["qlora_profiles", "qlora_run"]\n'
    head = '[tool.importlinter]\nroot_packages = ["qlora_run", "qlora_profiles"]\n'
    upside_down.write_text(head + contract + layers, encoding="utf-8")
    assert not lint(upside_down)


def test_no_import_goes_in_a_circle() -> None:
    assert cycles(imports_of(*PACKAGES)) == []


@pytest.mark.parametrize(
    ("imports", "found"),
    [
        ({"p": [], "p.a": ["p.b"], "p.b": []}, []),
        ({"p": [], "p.a": ["p.b"], "p.b": ["p.a"]}, ["p.a", "p.b"]),
        ({"p": [], "p.a": ["p.b"], "p.b": ["p.c"], "p.c": ["p.a"]}, ["p.a", "p.b", "p.c"]),
        ({"p": ["p.a"], "p.a": ["p"]}, ["p", "p.a"]),
        # no module imports itself in a circle, but the packages do
        ({"p.a": [], "p.a.x": ["p.b.x"], "p.a.y": [], "p.b": [], "p.b.x": [], "p.b.y": ["p.a.y"]}, ["p.a", "p.b"]),
        ({"p.q.a.x": ["p.q.b.x"], "p.q.a.y": [], "p.q.b.x": [], "p.q.b.y": ["p.q.a.y"]}, ["p.q.a", "p.q.b"]),
        ({"p.a": ["q.a"], "p.b": [], "q.a": [], "q.b": ["p.b"]}, ["p", "q"]),
        # a package and a module beside it
        ({"p.a": [], "p.a.x": ["p.m"], "p.a.y": [], "p.m": ["p.a.y"]}, ["p.a", "p.m"]),
    ],
)
def test_a_cycle_is_found_at_any_depth(imports: Imports, found: list[str]) -> None:
    text = cycles(imports)
    assert len(text) == bool(found), text
    assert sorted(set(" -> ".join(text).split(" -> "))) == (found or [""])


@pytest.mark.parametrize(
    "back",
    [
        "from house_of_cards import a",
        "def late():\n    from house_of_cards.a import X",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house_of_cards.a",
    ],
    ids=["plain", "lazy", "typing only"],
)
def test_lazy_and_typing_only_imports_count(back: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "house_of_cards"
    folder.mkdir()
    for name, text in {"__init__": "", "a": "from house_of_cards import b\nX = 1", "b": back}.items():
        (folder / f"{name}.py").write_text(text + "\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = cycles(imports_of("house_of_cards"))
    assert set(found.split(" -> ")) == {"house_of_cards.a", "house_of_cards.b"}


OLD_SETTINGS = ("layers_expanded", "rebuild_activations", "weight_kernel")
OLD_NAMES = re.compile(
    "|".join(name.replace("_", "[_-]") for name in OLD_SETTINGS) + r"|\bqlora_core\.step\b|\bqlora_run\.(?:resolve|"
    r"view|calibration|learned|ending|needed|compiled)\b"
)
DOTTED = re.compile(r"\b(?:qlora_run|qlora_core|qlora_profiles)(?:\.\w+)+")
PYTHON_FILE = re.compile(r"(?<![\w*/-])[\w-]+(?:/[\w-]+)*\.py\b")
ENTRY_POINTS = ("qlora_run.backends",)
"""Groups that other packages register under: names of no module."""


def wrong_names(text: str) -> list[str]:
    """Names in a text that are not the project's: of settings and modules as they were, and of what is not there."""
    found = [match[0] for match in OLD_NAMES.finditer(text)]
    found += [match[0] for match in DOTTED.finditer(text) if match[0] not in ENTRY_POINTS and not _is_there(match[0])]
    files = [f"/{path.relative_to(ROOT).as_posix()}" for folder in SOURCE_FOLDERS for path in _files(folder)]
    found += [m[0] for m in PYTHON_FILE.finditer(text) if not any(path.endswith(f"/{m[0]}") for path in files)]
    return list(dict.fromkeys(found))


def _is_there(name: str) -> bool:
    """Whether a dotted name is a module, or something that one defines."""
    owner, _, last = name.rpartition(".")
    return name in modules() or (owner in modules() and last in _defined(owner))


def _defined(module: str) -> set[str]:
    base = next(ROOT / folder for folder in ("launcher", "core", "profiles") if _source(ROOT / folder, module))
    path = _source(base, module)
    assert path is not None
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}


def _source(base: Path, module: str) -> Path | None:
    place = base.joinpath(*module.split("."))
    return next((p for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file()), None)


def _files(folder: str) -> Iterator[Path]:
    return (ROOT / folder).rglob("*.py")


PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_speak_of_what_is_there(page: str) -> None:
    assert wrong_names((ROOT / page).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("topic", [None, "SETTINGS", *COMMANDS, *settings()], ids=lambda topic: topic or "--help")
def test_the_help_speaks_the_names_of_today(topic: str | None) -> None:
    assert wrong_names(explain(topic)) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("`--layers-expanded 4` and layers_expanded: 4", ["layers-expanded", "layers_expanded"]),
        ("rebuild_activations, weight-kernel", ["rebuild_activations", "weight-kernel"]),
        ("`qlora_core.step` does it", ["qlora_core.step"]),
        ("see qlora_run.resolve.planner", ["qlora_run.resolve", "qlora_run.resolve.planner"]),
        ("a class qlora_core.backends.protocol.Frontend", ["qlora_core.backends.protocol.Frontend"]),
        ("`step/rebuild.py` and `supervise.py`", ["step/rebuild.py", "supervise.py"]),
        ("qlora_core.backends.protocol.Backend, `planner/resolve.py`, --layers-dequantized, tests/conftest.py", []),
        ("under the entry-point group `qlora_run.backends`", []),
    ],
)
def test_an_old_name_is_found(text: str, wrong: list[str]) -> None:
    assert wrong_names(text) == wrong


def test_every_package_says_what_it_is() -> None:
    folders = {path.parent for folder in PACKAGE_FOLDERS for path in _files(folder)}
    silent = [str(folder.relative_to(ROOT)) for folder in folders if not _docstring(folder / "__init__.py")]
    assert silent == []


def _docstring(path: Path) -> str | None:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path.is_file() else None


@pytest.mark.parametrize("folder", SOURCE_FOLDERS)
def test_files_and_functions_are_of_a_readable_size(folder: str) -> None:
    too_long = []
    for path in _files(folder):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
        if text.count("\n") > LONGEST_FILE:
            too_long.append(name)
        too_long += [f"{name}: {function}" for function in _long_functions(text)]
    assert too_long == []


def _long_functions(text: str) -> list[str]:
    return [
        node.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno >= LONGEST_FUNCTION
    ]


def test_a_function_that_is_too_long_is_found() -> None:
    line = "    x = 1\n"
    assert _long_functions("def fits():\n" + line * (LONGEST_FUNCTION - 1)) == []
    assert _long_functions("def too_long():\n" + line * LONGEST_FUNCTION) == ["too_long"]
