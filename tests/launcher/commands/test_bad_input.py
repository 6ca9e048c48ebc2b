"""What a person can get wrong, through the real command line: one line each, exit code 2, nothing changed."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from huggingface_hub.errors import GatedRepoError
from support.command_line import adapter_on, contents, leave_run, planned, process, refused, said
from support.models import save_tiny_model, write_rows

from qlora_profiles.hardware import Disk
from qlora_profiles.machines import load_machine
from qlora_run.__main__ import main
from qlora_run.model_facts import hub
from qlora_run.planner import make_plan

GOOD = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "fine"}]}'


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_tiny_model(folder / "tiny")
    save_tiny_model(folder / "other", "llama")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a model and rows, on a machine without a card."""
    shutil.copytree(models / "tiny", tmp_path / "tiny")
    write_rows(tmp_path / "rows.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(make_plan, "probe", lambda output, cache: load_machine("cpu-only"))
    yield tmp_path
    assert not (tmp_path / "runs").exists()


Caught = pytest.CaptureFixture[str]
TINY = ("--auto", "--model", "tiny")
BOTH = (*TINY, "--data", "rows.jsonl")


def rows(folder: Path, *lines: str, name: str = "bad.jsonl") -> tuple[str, ...]:
    (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return (*TINY, "--data", name)


def damaged_model(folder: Path, name: str) -> Path:
    return Path(shutil.copytree(folder / "tiny", folder / name))


# --- data


def test_no_data(here: Path, capsys: Caught) -> None:
    assert "no --data was given, and there is no training_data.jsonl here -> --data rows.jsonl" in refused(
        capsys, *TINY
    )
    assert "--data row.jsonl no such file; did you mean rows.jsonl?" in refused(capsys, *TINY, "--data", "row.jsonl")
    assert "no folder nowhere" in refused(capsys, *TINY, "--data", "nowhere/rows.jsonl")
    assert "--data tiny a model's folder" in refused(capsys, *TINY, "--data", "tiny")
    assert "--data needs a value" in refused(capsys, *TINY, "--data")


def test_an_empty_file(here: Path, capsys: Caught) -> None:
    for text in ("", " \n\n"):
        (here / "empty.jsonl").write_text(text, encoding="utf-8")
        assert "empty.jsonl is empty -> one JSON object per line" in refused(capsys, *TINY, "--data", "empty.jsonl")


def test_a_wrong_extension(here: Path, capsys: Caught) -> None:
    shutil.copy(here / "rows.jsonl", here / "rows.txt")
    text = refused(capsys, *TINY, "--data", "rows.txt")
    assert "allowed: .jsonl, .json, .csv, .tsv, .parquet or .xlsx, also as .gz" in text
    assert "Run: " in said(capsys, *TINY, "--data", "rows.txt", "--data-format", "jsonl", "--dry-run")
    shutil.copy(here / "rows.jsonl", here / "rows.parquet")
    assert "rows.parquet is not a Parquet file" in refused(capsys, *TINY, "--data", "rows.parquet")


def test_a_file_that_is_not_utf8(here: Path, capsys: Caught) -> None:
    text = '{"prompt": "退款需要几天?", "answer": "三十天之内都可以退款"}\n' * 12
    (here / "gbk.jsonl").write_bytes(text.encode("gbk"))
    assert "gbk.jsonl not UTF-8; reads cleanly as GBK -> --encoding gbk" in refused(
        capsys, *TINY, "--data", "gbk.jsonl"
    )
    assert "12 rows" in said(capsys, *TINY, "--data", "gbk.jsonl", "--encoding", "gbk", "--dry-run")
    assert "no such encoding" in refused(capsys, *TINY, "--data", "gbk.jsonl", "--encoding", "klingon")


def test_broken_json_names_the_line_and_the_way_on(here: Path, capsys: Caught) -> None:
    argv = rows(here, GOOD, '{"messages": [{"role": "user", "content": "It is 8', GOOD)
    assert main(list(argv)) == 2
    assert capsys.readouterr().err == (
        "bad.jsonl:2  broken JSON: a quote is never closed\n"
        '  ...le": "user", "content": "It is 8        <- ends here\n'
        "  -> --skip-bad-rows sets 1 of 3 rows aside (rejected.jsonl)\n"
    )


def test_rows_with_missing_empty_and_wrong_fields(here: Path, capsys: Caught) -> None:
    argv = rows(
        here,
        '{"mesages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
        '{"messages": [{"role": "user", "content": "a"}]}',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}',
        '{"messages": "hi"}',
        '{"messages": [{"role": "user", "content": 5}, {"role": "assistant", "content": "b"}]}',
        "[1, 2]",
        GOOD,
    )
    text = refused(capsys, *argv, block=True)
    for line in (
        'bad.jsonl:1 no "messages", found "mesages" -> --field messages=mesages',
        "bad.jsonl:2 no assistant message: nothing to learn",
        "bad.jsonl:3 the assistant's answer is empty",
        'bad.jsonl:4 "messages" is a text, not a list of messages',
        "bad.jsonl:5 message 1 (user): the content is a number, not text",
        "bad.jsonl:6 the row is a list, not an object",
        "-> --skip-bad-rows sets 6 of 7 rows aside",
    ):
        assert line in text
    assert "1 row, longest" in said(capsys, *argv, "--skip-bad-rows", "--val-size", "0", "--dry-run")


def test_a_column_that_no_row_has(here: Path, capsys: Caught) -> None:
    text = refused(capsys, *BOTH, "--field", "messages=chats")
    assert 'no row has that column; rows.jsonl has "messages"' in text
    assert "want NAME=COLUMN" in refused(capsys, *BOTH, "--field", "messages")


REFUSES = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}{% endfor %}"
)


def test_rows_that_the_template_refuses_are_set_aside_too(here: Path, capsys: Caught) -> None:
    template = here / "tiny" / "chat_template.jinja"
    template.write_text(REFUSES + template.read_text(encoding="utf-8"), encoding="utf-8")
    system = '{"messages": [{"role": "system", "content": "be kind"}, ' + GOOD.partition("[")[2]
    argv = rows(here, *[GOOD] * 3, system, "{", GOOD)
    assert "bad.jsonl:5 broken JSON" in refused(capsys, *argv, block=True)
    good_json = rows(here, *[GOOD] * 3, system, GOOD)
    assert "bad.jsonl:4 the chat template refuses: no system turn" in refused(capsys, *good_json, block=True)
    plan = planned(capsys, *rows(here, *[GOOD] * 3, system, "{", GOOD), "--skip-bad-rows")
    assert (plan.data.rows, plan.data.train_rows, plan.data.rows_rejected) == (4, 4, 2)
    only = refused(capsys, *rows(here, system, "{"), "--skip-bad-rows", block=True)
    assert "bad.jsonl:1 the chat template refuses" in only
    assert "bad.jsonl:2 broken JSON" in only


def test_all_rows_longer_than_the_longest_allowed(here: Path, capsys: Caught) -> None:
    text = refused(capsys, *BOTH, "--max-length", "5")
    assert "--max-length 5: every answer begins after that (the first at token 17) -> --max-length 48" in text


def test_nothing_left_to_train_on(here: Path, capsys: Caught) -> None:
    assert "--val-size 24: nothing to train on is left of 24 rows" in refused(capsys, *BOTH, "--val-size", "24")


# --- settings


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            ["--learning-rate", "-1"],
            "--learning-rate: '-1' is not allowed; a number, above 0, at most 10",
        ),
        (["--epochs", "many"], "--epochs: 'many' is not allowed; a number, above 0"),
        (["--lora-dropout", "1"], "at least 0, below 1"),
        (["--method", "qlora-5"], "one of qlora-4, qlora-8, lora, full"),
        (["--max-length", "4096"], "max_length 4,096: tiny reads at most 512 tokens -> --max-length 512"),
        (["--epohcs", "2"], "unknown option --epohcs; did you mean --epochs?"),
        (["--target-modules", "nothere"], "tiny has no layer nothere; it has down_proj"),
        (["--chat-template", "nosuch"], "no such template -> one of chatml"),
        (["--output"], "--output needs a value"),
        (["more"], "unexpected word more"),
        (["--lora-r", "4", "--lora_rank", "8"], "--lora-r 4 contradicts --lora_rank 8 -> remove one of them"),
    ],
)
def test_options_that_cannot_be(argv: list[str], expected: str, capsys: Caught) -> None:
    assert expected in refused(capsys, *BOTH, *argv)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epohcs: 3\n", "c.yaml:2 unknown key epohcs; did you mean epochs?"),
        ("epochs: -3\n", "c.yaml:2 epochs: '-3' is not allowed"),
        ("epochs: 1\nepochs: 2\n", "c.yaml:3 epochs is already set in line 2"),
        ("epochs: [\n", "not YAML"),
        ("model: other\n", "c.yaml:2 model is already set in line 1"),
    ],
)
def test_a_config_file_that_cannot_be(text: str, expected: str, here: Path, capsys: Caught) -> None:
    (here / "c.yaml").write_text("model: tiny\n" + text, encoding="utf-8")
    assert expected in refused(capsys, "--config", "c.yaml", "--data", "rows.jsonl")
    assert "did you mean c.yaml?" in refused(capsys, "--config", "d.yaml")


def test_what_the_machine_cannot_do(capsys: Caught) -> None:
    assert "device cuda" in refused(capsys, *BOTH, "--device", "cuda", code=3)
    assert "-> qlora-run doctor" in refused(capsys, *BOTH, "--device", "cuda", code=3)
    assert "backend nosuch" in refused(capsys, *BOTH, "--backend", "nosuch")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["trian", "--model", "tiny"], "unknown command trian; did you mean train?"),
        (["rows.jsonl"], "rows.jsonl is no command -> qlora-run --auto --model MODEL --data rows.jsonl"),
        (["help", "epohcs"], "no help on epohcs; did you mean epochs?"),
        (["profiles", "shwo"], "profiles: unexpected word shwo"),
        (["profiles", "show", "linux-12g"], "unknown profile linux-12g; did you mean linux-12gb"),
        (["plan", "--as", "linux-9"], "no machine is called 'linux-9'"),
        (["--as", "linux-8gb"], "only a plan can be made for another machine -> qlora-run plan --as"),
        (["infer"], "infer: what should be answered?"),
        (["resume"], "resume needs a folder"),
        (["replay"], "replay needs a folder"),
        (["merge"], "merge needs a folder -> qlora-run merge FOLDER [-o OUTPUT]"),
        (["chat"], "no finished run here (looked under runs)"),
    ],
)
def test_words_that_cannot_be(argv: list[str], expected: str, capsys: Caught) -> None:
    assert expected in refused(capsys, *argv)


# --- the model


def test_a_model_that_is_not_there_names_what_is_near(here: Path, capsys: Caught) -> None:
    data = ("--data", "rows.jsonl")
    assert "--model ./tinny no such folder; nearby: ./tiny -> --model ./tiny" in refused(
        capsys, "--model", "./tinny", *data
    )
    assert "is a file; the folder around it is the model" in refused(capsys, "--model", "tiny/config.json", *data)


def test_model_folders_with_something_missing(here: Path, capsys: Caught) -> None:
    missing = {
        "config.json": "no config.json there",
        "model.safetensors": "no weights (*.safetensors) there",
        "tokenizer.json": "no tokenizer (tokenizer.json) beside the weights",
    }
    for number, (file, expected) in enumerate(missing.items()):
        (damaged_model(here, f"bad{number}") / file).unlink()
        assert expected in refused(capsys, "--model", f"bad{number}", "--data", "rows.jsonl")


def test_model_folders_with_something_damaged(here: Path, capsys: Caught) -> None:
    weights = damaged_model(here, "cut") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20_000])
    assert "cut off, 19.5 KiB of" in refused(capsys, "--model", "cut", "--data", "rows.jsonl")
    (damaged_model(here, "half") / "config.json").write_text("{", encoding="utf-8")
    assert "not JSON" in refused(capsys, "--model", "half", "--data", "rows.jsonl")
    (damaged_model(here, "words") / "tokenizer.json").write_text("{", encoding="utf-8")
    assert "tokenizer.json is damaged" in refused(capsys, "--model", "words", "--data", "rows.jsonl")


def test_a_model_with_code_of_its_own(here: Path, capsys: Caught) -> None:
    path = damaged_model(here, "own") / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"auto_map": {"AutoModelForCausalLM": "m.M"}}
    path.write_text(json.dumps(config | {"model_type": "brand_new"}), encoding="utf-8")
    argv = ("--model", "own", "--data", "rows.jsonl")
    text = refused(capsys, *argv)
    assert "--model own comes with Python code of its own" in text
    assert "-> --trust-remote-code" in text
    assert "Run: " in said(capsys, *argv, "--trust-remote-code", "--dry-run")
    path.write_text(json.dumps(config), encoding="utf-8")  # qwen3 is built in: its code is not needed
    assert "Run: " in said(capsys, *argv, "--dry-run")


def test_a_hub_id_without_a_network(here: Path) -> None:
    before = contents(here)
    done = process("--model", "org/x", "--data", "rows.jsonl", cwd=here, env={"HF_HOME": str(here / "hf")})
    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr.decode().splitlines() == [
        "--model org/x  not on this disk, hub unreachable",
        "  -> a local folder, HF_ENDPOINT=<mirror>, or: qlora-run demo",
    ]
    assert contents(here) == before


def test_a_gated_model_without_a_token(here: Path, capsys: Caught, monkeypatch: pytest.MonkeyPatch) -> None:
    def gated(model: str, revision: str | None) -> Any:
        request = httpx.Request("GET", f"https://hub.invalid/{model}")
        raise GatedRepoError("403\nAccess is restricted", response=httpx.Response(403, request=request))

    monkeypatch.setattr(hub, "_config", gated)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    text = refused(capsys, "--model", "org/gated", "--data", "rows.jsonl")
    assert "--model org/gated gated: its owners must let your account in" in text
    assert "hf auth login" in text


def test_names_that_no_disk_holds(capsys: Caught) -> None:
    assert "not in this system's encoding" in refused(capsys, "--model", "\udcff", "--data", "rows.jsonl")


def test_an_output_folder_that_cannot_be_written(here: Path, capsys: Caught) -> None:
    for folder, more in (("rows.jsonl", ["--dry-run"]), ("rows.jsonl/below", [])):
        assert f"--output {folder}: rows.jsonl is a file" in refused(capsys, *BOTH, "--output", folder, *more)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root and Windows write anywhere")
def test_an_output_folder_without_permission(here: Path, capsys: Caught) -> None:
    (here / "theirs").mkdir(mode=0o555)
    for folder in ("theirs", "theirs/below"):
        assert f"{folder}: cannot be written (Permission denied)" in refused(capsys, *BOTH, "--output", folder)


def test_an_output_folder_that_holds_something_else(here: Path, capsys: Caught) -> None:
    assert "tiny: holds files of something else; refusing to mix" in refused(capsys, *BOTH, "--output", "tiny")
    leave_run(here / "r", planned(capsys, *BOTH, "--output", "r"))
    assert main([*BOTH, "--output", "r", "--dry-run"]) == 0
    assert "r: finished already, at step 4; nothing was done\n  talk to it" in capsys.readouterr().err
    other = refused(capsys, *BOTH, "--output", "r", "--lora-r", "8")
    assert "r finished at step 4. Changed since: lora-r 16 -> 8. Refusing to mix. -> --output r-2" in other
    leave_run(here / "s", planned(capsys, *BOTH, "--output", "s"), finished=False)
    both_ways = "-> qlora-run resume s (old settings) or --output s-2"
    assert both_ways in refused(capsys, *BOTH, "--output", "s", "--lora-r", "8")
    (here / "r" / "plan.json").write_text("{", encoding="utf-8")
    assert "plan.json: not JSON" in refused(capsys, *BOTH, "--output", "r")
    assert "start anew" in refused(capsys, "resume", "r")


def test_a_disk_too_small_for_the_checkpoints(capsys: Caught, monkeypatch: pytest.MonkeyPatch) -> None:
    report = msgspec.structs.replace(load_machine("cpu-only"), disk=Disk(output_free_bytes=2**20))
    monkeypatch.setattr(make_plan, "probe", lambda output, cache: report)
    text = refused(capsys, *BOTH, code=3)
    assert "not enough disk: the run writes" in text
    assert "-> --output on another disk" in text, "keeping fewer checkpoints would not help"


def test_a_checkpoint_that_cannot_be_gone_on_from(here: Path, capsys: Caught) -> None:
    for folder in ("nowhere", "tiny"):
        text = refused(capsys, *BOTH, "--output", "r", "--resume", folder)
        assert f"--resume {folder}: not a complete checkpoint" in text
    (here / "checkpoint-2").mkdir()
    (here / "checkpoint-2" / "complete.json").write_text("{}", encoding="utf-8")
    assert "a damaged checkpoint" in refused(capsys, *BOTH, "--output", "r", "--resume", "checkpoint-2")
    mark = '{"step": 2, "recipe": "other"}'
    (here / "checkpoint-2" / "complete.json").write_text(mark, encoding="utf-8")
    assert "another recipe" in refused(capsys, *BOTH, "--output", "r", "--resume", "checkpoint-2")


# --- profiles


def test_profiles_that_do_not_exist_or_do_not_fit(capsys: Caught) -> None:
    text = refused(capsys, *BOTH, "--profile", "linux-12g")
    assert "unknown profile linux-12g; did you mean linux-12gb" in text
    assert "there is no such card -> --profile cpu" in refused(capsys, *BOTH, "--profile", "linux-12gb")


# --- after the training


@pytest.mark.parametrize("command", [["chat"], ["infer", "--prompt", "hi"], ["merge"]])
def test_nothing_to_talk_to_or_to_merge(command: list[str], here: Path, capsys: Caught) -> None:
    word, *rest = command
    assert "nowhere: no such folder" in refused(capsys, word, "nowhere", *rest)
    (here / "empty").mkdir()
    assert "empty: nothing trained lies here" in refused(capsys, word, "empty", *rest)
    leave_run(here / "stopped", planned(capsys, *BOTH, "--output", "stopped"), finished=False)
    text = refused(capsys, word, "stopped", *rest)
    assert "stopped: not finished, stopped at step 4 -> qlora-run resume stopped" in text


@pytest.mark.parametrize("command", [["chat"], ["infer", "--prompt", "hi"], ["merge"]])
def test_an_adapter_on_another_base(command: list[str], here: Path, models: Path, capsys: Caught) -> None:
    adapter_on(here / "tiny", here / "a")
    word, *rest = command
    text = refused(capsys, word, "a", *rest, "--base", str(models / "other"))
    assert "llama, 3 layers of 64; the adapter was trained on tiny (qwen3, 3 layers of 64) -> --base tiny" in text
    assert "--base ./tinny no such folder; nearby: ./tiny" in refused(capsys, word, "a", *rest, "--base", "./tinny")
    shutil.move(here / "tiny", here / "moved")
    assert "--base" in (text := refused(capsys, word, "a", *rest))
    assert "no such folder; nearby" in text
    (here / "a" / "base.json").unlink()
    assert "a: an adapter of another program" in refused(capsys, word, "a", *rest)


def test_a_merge_never_writes_over_something(here: Path, capsys: Caught) -> None:
    adapter_on(here / "tiny", here / "r" / "lora_adapter")
    assert "tiny: holds a model already" in refused(capsys, "merge", "r", "-o", "tiny")
    assert "rows.jsonl: a file is in the way" in refused(capsys, "merge", "r", "-o", "rows.jsonl")
    assert "cannot be written" in refused(capsys, "merge", "r", "-o", "rows.jsonl/x/y")
    assert "r: holds other files already" in refused(capsys, "merge", "r", "-o", "r")
    assert "a whole model, no adapter to merge -> qlora-run chat tiny" in refused(capsys, "merge", "tiny")
    assert "has no merged model -> qlora-run merge r" in refused(capsys, "chat", "r", "--merged")
