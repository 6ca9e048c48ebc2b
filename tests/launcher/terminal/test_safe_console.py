"""Nothing that data, paths or models say steers a terminal."""

import io
import json
import os
import sys
from pathlib import Path

import pytest

from qlora_profiles.errors import UserError
from qlora_profiles.visible import visible, visible_json
from qlora_run.terminal.console import make_console, print_error
from tests.support.command_line import NO_HUB, process, python_path

EVIL = "\x1b[2J\x9b31m\x07\x08\u202egnp\u2066\x7f\ud800"
SPELLED = r"\x1b[2J\x9b31m\x07\x08\u202egnp\u2066\x7f\ud800"
RAW = ("\x1b[2J", "\x9b", "\x07", "\x08", "\u202e", "\u2066", "\x7f")


def test_control_characters_are_spelled_and_lines_stay() -> None:
    assert visible(EVIL) == SPELLED
    assert visible("a\r\n\tb\rc") == "a\n\tb" + r"\x0dc"
    assert json.loads(visible_json(json.dumps(EVIL, ensure_ascii=False))) == EVIL
    assert not any(raw in visible_json(json.dumps(EVIL, ensure_ascii=False)) for raw in RAW)


def test_errors_and_screens_spell_them() -> None:
    out = io.StringIO()
    print_error(UserError(f"key {EVIL} [red]x[/red]", f"--field {EVIL}"), out)
    make_console(out).print(f"note {EVIL} [bold]y[/bold] :smile:")
    shown = out.getvalue()
    assert not any(raw in shown for raw in RAW)
    assert all(words in shown for words in ("[red]x[/red]", "[bold]y[/bold] :smile:", r"\x1b[2J"))


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX'")
@pytest.mark.parametrize("name", ["key", "path", "role"])
def test_a_terminal_gets_none_of_it(tmp_path: Path, name: str) -> None:
    import pty
    import subprocess

    evil = "\x1b[2J\u202e\x9b1m"
    row = {"key": {evil: 1}, "path": {"x": 1}, "role": {"messages": [{"role": evil, "content": "x"}]}}[name]
    data = tmp_path / (f"{evil}.jsonl" if name == "path" else "my.jsonl")
    data.write_text(json.dumps(row), encoding="utf-8")
    argv = ["plan", "--data", str(data), "--model", str(tmp_path), "--device", "cpu"]
    reader, writer = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": python_path(), "HF_ENDPOINT": NO_HUB, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "qlora_run", *argv]
    subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer, check=False)
    os.close(writer)
    shown = b""
    while chunk := _read(reader):
        shown += chunk
    os.close(reader)
    piped = process(*argv, cwd=tmp_path)
    for said in (shown, piped.stdout + piped.stderr):
        text = said.decode("utf-8")
        assert said
        assert "Traceback" not in text
        assert not any(raw in text for raw in ("\x1b[2J", "\u202e", "\x9b"))


def _read(reader: int) -> bytes:
    try:
        return os.read(reader, 65536)
    except OSError:  # Linux says so where nobody writes any more
        return b""
