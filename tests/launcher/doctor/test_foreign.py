"""Foreign machines simulated here: consoles that lack letters, ASCII locales, odd folder names, no symbolic links."""

import sys
from pathlib import Path

import pytest
from support.command_line import process
from support.models import save_tiny_model, write_rows

CONSOLES: dict[str, dict[str, str]] = {
    "gbk": {"PYTHONIOENCODING": "gbk", "PYTHONUTF8": "0"},
    "ascii": {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "cp1252": {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
}
CHINESE, SPACED, SIGNS = "训练 数据", "with spaces", "ä ö & (1)"
COMMANDS: dict[str, tuple[list[str], tuple[int, ...], str]] = {
    "plan": (["plan", "--model", "tiny model", "--data", "行 rows.jsonl", "--full"], (0,), "token-budget"),
    "plan as json": (["plan", "--as", "windows-12gb", "--json"], (0,), '"recipe"'),
    "doctor": (["doctor", "--as", "windows-12gb"], (0, 1), "Ready: QLoRA 4-bit"),
    "doctor here": (["doctor", "--quick"], (1,), "doctor: this machine"),
    "doctor as json": (["doctor", "--quick", "--json"], (1,), '"checks"'),
    "doctor's fixes": (["doctor", "--as", "windows-cpu-torch", "--fix"], (3,), "@echo off"),
    "profiles": (["profiles"], (0,), "windows-12gb"),
    "profile": (["profiles", "show", "我的"], (2,), ""),
}


CASES = [
    *((CHINESE, console, name) for console in ("gbk", "ascii", "C") for name in COMMANDS),
    *((folder, "cp1252", name) for folder in (SPACED, SIGNS) for name in ("plan", "doctor here")),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each name, with a model and rows in it."""
    made = {name: tmp_path_factory.mktemp("foreign") / name for name in (CHINESE, SPACED, SIGNS)}
    for folder in made.values():
        folder.mkdir()
        save_tiny_model(folder / "tiny model")
        write_rows(folder / "行 rows.jsonl")
    return made


def decoded(output: bytes, console: str) -> str:
    """As that console would show it; a letter that it cannot carry must not be in it."""
    return output.decode({"C": "utf-8"}.get(console, console))


@pytest.mark.parametrize(("where", "console", "name"), CASES)
def test_the_commands_work_on_foreign_consoles(where: str, console: str, name: str, places: dict[str, Path]) -> None:
    folder = places[where]
    words, codes, expected = COMMANDS[name]
    env = CONSOLES[console] | {"QLORA_RUN_CACHE": str(folder / "cache"), "QLORA_RUN_CONFIG": str(folder / "设置")}
    done = process(*words, cwd=folder, env=env)
    out, err = decoded(done.stdout, console), decoded(done.stderr, console)
    assert done.returncode in codes, out + err
    assert expected in out
    assert "Traceback" not in err
    if done.returncode != 2:
        assert err == ""


NO_LINKS = """
import os, sys

def refuse(*args, **more):
    error = OSError(22, "A required privilege is not held by the client")
    error.winerror = 1314
    raise error

os.symlink = refuse
import pathlib
pathlib.Path.symlink_to = refuse
from qlora_run.__main__ import main
sys.exit(main())
"""


def test_a_system_that_refuses_links(tmp_path: Path) -> None:
    """As Windows does without developer mode: said with its number, and everything else works."""
    wrapper = tmp_path / "no_links.py"
    wrapper.write_text(
        NO_LINKS.replace(
            "from qlora_run.__main__ main_import", "from qlora_run.__main__ import main\nsys.exit(main())"
        ),
        encoding="utf-8",
    )
    env = {"QLORA_RUN_CACHE": str(tmp_path / "cache"), "COLUMNS": "200"}
    command = [sys.executable, str(wrapper)]
    done = process("doctor", "--quick", cwd=tmp_path, env=env, command=command)
    text = done.stdout.decode()
    assert done.returncode == 1, done.stderr
    assert "links cannot be made (WinError 1314)" in text
    assert "downloads are copied instead" in text
    planned = process("plan", "--as", "windows-12gb", cwd=tmp_path, env=env, command=command)
    assert planned.returncode == 0, planned.stderr
