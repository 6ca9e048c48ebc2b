"""Nothing that data, paths or models say steers a terminal."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
from support.command_line import NO_HUB, process, python_path

import qlora_core.demo
from qlora_profiles.errors import UserError
from qlora_profiles.visible import visible, visible_json
from qlora_run.terminal.console import make_console, print_error

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
def test_a_terminal_gets_none_of_it(tmp_path: Path) -> None:
    import pty
    import subprocess

    evil = "\x1b[2J\u202e\x9b1m"
    data = tmp_path / f"{evil}.jsonl"
    rows = [{evil: 1}, {"messages": [{"role": evil, "content": "x"}]}]
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    base = Path(qlora_core.demo.__file__).parent / "base"
    argv = ["plan", "--data", str(data), "--model", str(base), "--device", "cpu"]
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
        assert text.count("x1b[2J") >= 4  # the path, a key and a role
        assert "Traceback" not in text
        assert not any(raw in text for raw in ("\x1b[2J", "\u202e", "\x9b"))


def _read(reader: int) -> bytes:
    try:
        return os.read(reader, 65536)
    except OSError:  # Linux says so where nobody writes any more
        return b""
