"""The commands as wholes: plans shown and compared, streams that end early, consoles of any encoding."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.command_line import NO_HUB, SOURCES, adapter_on, contents, leave_run, planned, process, refused, said
from support.models import save_tiny_model, write_rows

from qlora_core.session import streams
from qlora_profiles import codec
from qlora_profiles.machines import load_machine
from qlora_profiles.plan import RunPlan
from qlora_profiles.run_folder import is_ours
from qlora_run.__main__ import main
from qlora_run.commands.chat import chat_job
from qlora_run.commands.merge import merge_job
from qlora_run.planner import make_plan
from qlora_run.runs.folder import with_full_paths
from qlora_run.supervise import child

Caught = pytest.CaptureFixture[str]
BOTH = ("--model", "tiny", "--data", "rows.jsonl")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(model, tmp_path / "tiny")
    write_rows(tmp_path / "rows.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(make_plan, "probe", lambda output, cache: load_machine("cpu-only"))
    return tmp_path


def test_a_plan_is_shown_and_nothing_is_written(here: Path, capsys: Caught) -> None:
    before = contents(here)
    text = said(capsys, "plan", *BOTH)
    assert "24 rows, longest 48 tokens" in text
    assert "Writes to runs/tiny-1" in text
    assert "Run: qlora-run --auto --model tiny --data rows.jsonl\n" in text
    assert "warmup-ratio" in said(capsys, "plan", *BOTH, "--full")
    assert said(capsys, *BOTH, "--dry-run") == text
    assert contents(here) == before


def test_a_plan_before_there_is_any_data(here: Path, capsys: Caught) -> None:
    (here / "rows.jsonl").unlink()
    text = said(capsys, "plan", "--model", "tiny")
    assert text.startswith("tiny")
    assert "no data yet" in text.splitlines()[0]
    assert "no --data: planned for 1,000 usual rows" in " ".join(text.split())
    assert "such file" in refused(capsys, "plan", "--model", "tiny", "--data", "rows.jsonl")


def test_a_plan_for_a_model_that_is_not_on_this_disk(here: Path) -> None:
    """Rows are counted and checked; only their tokens are guessed."""
    env = {"HF_HOME": str(here / "hf")}
    done = process("plan", "--model", "Qwen/Qwen3-0.6B", "--data", "rows.jsonl", cwd=here, env=env)
    text = " ".join(done.stdout.decode().split())
    assert (done.returncode, done.stderr) == (0, b"")
    assert "about 24 rows" in text
    assert "tokens are guessed from the letters" in text
    (here / "rows.jsonl").write_text('{"text": "a"}\n{\n', encoding="utf-8")
    broken = process("plan", "--model", "Qwen/Qwen3-0.6B", "--data", "rows.jsonl", cwd=here, env=env)
    assert broken.returncode == 2
    assert b"rows.jsonl:2  broken JSON" in broken.stderr


def test_guessed_tokens_are_near_what_tokenizers_make() -> None:
    from qlora_core.data.pipeline import guessed_tokens
    from qlora_core.data.schema import Conversation, Message

    def guess(text: str) -> int:
        return guessed_tokens(Conversation(line=1, messages=(Message(role="user", content=text),)))

    assert 85 <= guess("The quick brown fox jumps over the lazy dog. " * 8) <= 105
    assert 130 <= guess("退款需要在三十天之内申请" * 16) <= 150
    assert guessed_tokens(Conversation(line=1, text="four")) == 7


def test_a_plan_as_json_is_a_plan(here: Path, capsys: Caught) -> None:
    plan = planned(capsys, *BOTH)
    assert plan.recipe_values().model == "tiny"
    assert codec.from_json(said(capsys, "plan", *BOTH, "--json"), RunPlan, "x").recipe_digest() == plan.recipe_digest()


def test_a_plan_compared_with_a_run(here: Path, capsys: Caught) -> None:
    leave_run(here / "r", planned(capsys, *BOTH, "--output", "r", "--lora-r", "4"))
    for named in ("r", "r/plan.json"):
        text = said(capsys, "plan", "--from", named)
        assert "recipe: the same, so the same is learned" in text
        assert "Run: qlora-run --auto --model tiny --data rows.jsonl --lora-r 4\n" in text
        assert "Writes to runs/tiny-1" in text
    other = said(capsys, "plan", "--from", "r", "--lora-r", "8", "--as", "linux-12gb")
    assert "recipe: DIFFERENT" in other
    assert "lora-r 4 -> 8" in other
    assert "device cpu -> cuda" in other
    assert "no plan.json that can be used" in refused(capsys, "plan", "--from", "rows.jsonl")
    assert "nofile.json: no such file" in refused(capsys, "plan", "--from", "nofile.json")


def test_the_catalogue(capsys: Caught) -> None:
    assert "linux-12gb" in said(capsys, "profiles")
    assert "linux-12gb" in {profile["name"] for profile in json.loads(said(capsys, "profiles", "--json"))}
    assert said(capsys, "profiles", "show", "linux-12gb").startswith("name: linux-12gb\n")
    assert json.loads(said(capsys, "profiles", "show", "cpu", "--json"))["machine"]["cpu"] is True


def test_help_and_version(capsys: Caught) -> None:
    assert said(capsys) == said(capsys, "--help")
    assert "qlora-run merge FOLDER [-o OUTPUT]" in said(capsys, "help", "merge")
    assert said(capsys, "--version").startswith("qlora-run ")


def test_ctrl_c_before_the_training(here: Path, capsys: Caught, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(output: Any, cache: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(make_plan, "probe", interrupted)
    before = contents(here)
    assert main(list(BOTH)) == 130
    assert capsys.readouterr().err == "Stopped.\n"
    assert contents(here) == before


def test_a_full_disk_is_no_traceback(here: Path, capsys: Caught, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(value: Any, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(codec, "save", full)
    assert main(list(BOTH)) == 3
    assert "cannot be written (No space left on device)" in capsys.readouterr().err


def test_a_hub_model_is_found_where_its_run_stored_it(here: Path, capsys: Caught) -> None:
    stored = shutil.move(here / "tiny", here / "stored")
    plan = planned(capsys, "--model", "org/tiny", "--data", "rows.jsonl", "--local-dir", "stored", "--output", "r")
    adapter_on(Path("org/tiny"), leave_run(here / "r", with_full_paths(plan)) / "lora_adapter")
    assert chat_job({"adapter": "r"}, set()).base == str(stored)
    merge = merge_job({"adapter": "r", "validate": True}, {"validate"})
    assert (merge.base, Path(str(merge.output)), merge.validate) == (str(stored), Path("r/final_model"), True)


def in_hub_cache(model: Path, cache: Path, name: str) -> None:
    """The model as the hub's client stores a download of ``org/NAME``, without its links."""
    stored = cache / f"models--org--{name}"
    shutil.copytree(model, stored / "snapshots" / "abc")
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("abc", encoding="utf-8")


def test_what_a_run_downloaded_is_looked_for_where_it_went(here: Path, capsys: Caught) -> None:
    for name in ("tiny", "other"):
        in_hub_cache(here / "tiny", here / "big", name)
    shutil.rmtree(here / "tiny")
    plan = planned(capsys, "--model", "org/tiny", "--data", "rows.jsonl", "--cache", "big", "--output", "r")
    adapter_on(Path("org/tiny"), leave_run(here / "r", with_full_paths(plan)) / "lora_adapter")
    for target in ("r", "r/lora_adapter"):
        for base in (None, "org/other"):
            options = {"adapter": target, "base": base}
            assert chat_job(options, set()).cache == merge_job(options, set()).cache == str(here / "big")
    assert chat_job({"adapter": "r", "base": "org/other"}, set()).base == "org/other"


# --- streams


@pytest.mark.skipif(sys.platform == "win32", reason="head")
@pytest.mark.parametrize("words", [["profiles"], ["help", "SETTINGS"], ["plan", "--full"], ["plan", "--json"]])
def test_a_reader_that_leaves_early(words: list[str], here: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES), "HF_ENDPOINT": NO_HUB}
    read, write = os.pipe()
    os.close(read)  # like a reader that is gone before the first line
    command = [sys.executable, "-m", "qlora_run", *words]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, cwd=here, env=env, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


class Gone(io.StringIO):
    """A stream whose writes fail."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, "gone")


def test_only_a_missing_reader_is_overlooked(capsys: pytest.CaptureFixture[str]) -> None:
    """What a full disk did not take is told at the end; the work goes on either way."""
    problems = []
    for number in (errno.EPIPE, errno.ENOSPC):
        pipe = streams.LastingPipe(Gone(number))
        assert pipe.write("x") == 1
        problems.append(pipe.problem)
    assert problems == ["", "gone"]
    told = streams.Streams()
    assert told.code_after(0, output_matters=True) == 0
    told.problem = "gone"
    assert [told.code_after(code, output_matters=True) for code in (0, 2)] == [3, 2]
    assert told.code_after(0, output_matters=False) == 0
    assert "standard output could not be written: gone" in capsys.readouterr().err


def test_letters_that_the_console_lacks_break_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="gbk"))
    with streams.lasting_streams():
        print("退款 🎉")
    assert raw.getvalue().decode("gbk").split() == ["退款", "?"]


def test_json_stays_json_in_any_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    from qlora_run.commands.json_output import print_json

    for encoding in ("utf-8", "gbk", "ascii"):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", stream := io.TextIOWrapper(raw, encoding=encoding))
        print_json({"a": "退款 🎉"})
        stream.flush()
        assert json.loads(raw.getvalue().decode(encoding)) == {"a": "退款 🎉"}
        assert (b"\\u" in raw.getvalue()) == (encoding != "utf-8")


def test_children_write_files_in_utf8_and_speak_as_the_console_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="gbk"))
    env = child.child_environment()
    assert (env["PYTHONUTF8"], env["PYTHONIOENCODING"]) == ("1", "gbk:replace")


CHINESE = (
    '{"messages": [{"role": "user", "content": "退款要几天?"}, {"role": "assistant", "content": "三十天之内。🎉"}]}'
)


GBK = {"PYTHONIOENCODING": "gbk"}
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0"}
ASK = ("infer", "结果", "--prompt", "退款要几天?", "--max-new-tokens", "3")


@pytest.mark.parametrize(
    ("env", "then", "console"),
    [
        pytest.param(GBK, ASK, "gbk", id="gbk"),
        pytest.param(
            ASCII,
            ("merge", "结果"),
            "utf-8",  # a locale that can name no file is taken for UTF-8
            id="ascii",
            marks=pytest.mark.skipif(sys.platform == "win32", reason="a locale of POSIX"),
        ),
    ],
)
def test_chinese_names_and_texts_from_plan_to_result(
    env: dict[str, str], then: tuple[str, ...], console: str, here: Path
) -> None:
    (here / "tiny").rename(here / "模型")
    (here / "退款.jsonl").write_text(f"{CHINESE}\n" * 12, encoding="utf-8")
    (here / "设置.yaml").write_text("system_prompt: 你是客服\nsample_prompts: [退款要几天]\n", encoding="utf-8")
    small = ("--max-steps", "1", "--examples-per-step", "2", "--lora-r", "2", "--method", "lora")
    argv = ("--config", "设置.yaml", "--model", "模型", "--data", "退款.jsonl", "--output", "结果", *small)
    trained = process(*argv, cwd=here, env=env)
    assert trained.returncode == 0, trained.stderr
    assert b"Traceback" not in trained.stderr + trained.stdout
    assert "结果/lora_adapter" in trained.stdout.decode(console).replace("\\", "/")
    plan = codec.load(here / "结果" / "plan.json", RunPlan)
    assert plan.recipe_values().system_prompt == "你是客服"
    assert plan.recipe_values().data == (str(here / "退款.jsonl"),)
    done = process(*then, cwd=here, env=env)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stdout.strip()


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe without a reader")
def test_a_training_outlives_its_reader(here: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES), "CUDA_VISIBLE_DEVICES": "-1"}
    argv = [*BOTH, "--output", "r", "--max-steps", "2", "--examples-per-step", "2", "--read-back", "false"]
    command = [sys.executable, "-m", "qlora_run", *argv]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=here, env=env) as run:
        assert run.stdout is not None
        while not run.stdout.readline().startswith(b"Training tiny"):
            assert run.poll() is None
        assert (here / "r" / ".running").is_file()
        second = process(*argv, cwd=here)
        assert (second.returncode, b"another run is writing there" in second.stderr) == (2, True)
        run.stdout.close()
        assert run.wait(timeout=240) == 0
    assert (here / "r" / "lora_adapter" / "adapter_model.safetensors").is_file()
    assert not (here / "r" / ".running").exists()
    assert [path.name for path in (here / "r").iterdir() if not is_ours(path.name)] == []
