"""The launcher answers at once: what only looks, plans or refuses never loads the heavy libraries."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import NO_HUB, SOURCES
from support.models import save_tiny_model, write_rows

HEAVY = ("torch", "transformers", "datasets", "peft", "accelerate", "bitsandbytes", "numpy")
DEMO_BASE = Path(SOURCES[1]) / "qlora_core" / "demo" / "base"
WATCHED = """
import json, sys
from qlora_run.__main__ import main
code = main(sys.argv[1:])
loaded = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"code": code, "loaded": loaded}), file=sys.stderr)
"""
BOTH = ["--model", "tiny", "--data", "rows.jsonl"]
COMMANDS = {
    "help": (["--help"], 0),
    "settings": (["help", "SETTINGS"], 0),
    "setting": (["help", "lora_r"], 0),
    "version": (["version"], 0),
    "profiles": (["profiles"], 0),
    "profile": (["profiles", "show", "linux-12gb"], 0),
    "recipes": (["recipes"], 0),
    "recipe": (["plan", "--recipe", "gemma3-4b-belle", *BOTH], 0),
    "plan": (["plan", *BOTH], 0),
    "plan without anything": (["plan"], 0),
    "plan as json": (["plan", *BOTH, "--json"], 0),
    "plan for a card": (["plan", "--as", "windows-12gb"], 0),
    "plan in 4 bits": (["plan", *BOTH, "--method", "qlora-4"], 0),
    "data": (["data", *BOTH], 0),
    "data without a model": (["data", "--data", "rows.jsonl", "--html", "rows.html", "--overwrite"], 0),
    "dry run": (["--auto", *BOTH, "--dry-run"], 0),
    "doctor": (["doctor", "--as", "linux-12gb"], 0),
    "demo": (["demo", "--dry-run"], 0),
    "training that is refused": (["--auto", *BOTH, "--output", "tiny"], 2),
    "training that cannot be": (["--auto", *BOTH, "--max-length", "3"], 2),
    "resume of nothing": (["resume", "tiny"], 2),
    "chat with nothing": (["chat", "nowhere"], 2),
    "chat with another code": (["infer", "own", "--prompt", "x"], 2),
    "merge of nothing": (["merge", "tiny"], 2),
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here")
    save_tiny_model(folder / "tiny")
    save_tiny_model(folder / "own")
    config = json.loads((folder / "own" / "config.json").read_text(encoding="utf-8"))
    config |= {"auto_map": {"AutoModel": "m.M"}, "model_type": "brand_new"}
    (folder / "own" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_rows(folder / "rows.jsonl")
    return folder


def watched(words: list[str], here: Path) -> dict[str, object]:
    """Exit code and loaded modules of a command in a process of its own."""
    ours = {"PYTHONPATH": os.pathsep.join(SOURCES), "HF_ENDPOINT": NO_HUB, "HF_HOME": str(here / "hf")}
    command = [sys.executable, "-c", WATCHED, *words]
    done = subprocess.run(command, cwd=here, env={**os.environ, **ours}, capture_output=True, timeout=120)
    last: dict[str, object] = json.loads(done.stderr.decode("utf-8", "replace").splitlines()[-1])
    return last


@pytest.mark.parametrize("name", COMMANDS)
def test_heavy_libraries_stay_out(name: str, here: Path) -> None:
    if name == "demo" and not DEMO_BASE.is_dir():
        pytest.skip("the demo's base model is not built here")
    words, code = COMMANDS[name]
    found = watched(words, here)
    assert found["code"] == code
    loaded = found["loaded"]
    assert isinstance(loaded, list)
    assert "msgspec" in loaded  # the list is a real one
    assert not set(HEAVY) & set(loaded)


def test_the_watch_sees_what_is_loaded(here: Path) -> None:
    command = [sys.executable, "-c", "import numpy\n" + WATCHED, "version"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES)}
    done = subprocess.run(command, cwd=here, env=env, capture_output=True, timeout=120)
    assert "numpy" in json.loads(done.stderr.splitlines()[-1])["loaded"]
