"""What may happen to a run's folder between its stop and its next start: damage, loss, another base, a stranger."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from safetensors.torch import load_file, save_file
from support.command_line import contents, process, refused, said
from support.models import CHATML, save_tiny_model, write_rows

from qlora_profiles import codec
from qlora_profiles.events import RunEvent, StepEvent, WarningEvent, all_events
from qlora_profiles.machines import load_machine
from qlora_profiles.plan import Resolved, RunPlan
from qlora_run.__main__ import main
from qlora_run.planner import make_plan
from qlora_run.runs.folder import look

Caught = pytest.CaptureFixture[str]
SMALL = ("--max-steps", "4", "--examples-per-step", "4", "--save-steps", "1", "--save-total-limit", "3")
ARGV = ("--model", "tiny", "--data", "rows.jsonl", *SMALL, "--lora-r", "4", "--method", "lora", "--output", "r")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of four steps in ``r``, and what it was made of; each test has a copy."""
    folder = tmp_path_factory.mktemp("damage")
    save_tiny_model(folder / "tiny")
    write_rows(folder / "rows.jsonl")
    done = process("--auto", *ARGV, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where it was stopped after step 3."""
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    for name in ("lora_adapter", "best_adapter", "checkpoint-4", "training_config.json"):
        shutil.rmtree(tmp_path / "r" / name, ignore_errors=True)
    lines = (tmp_path / "r" / "events.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    last = max(at for at, line in enumerate(lines) if '"type":"checkpoint","' in line and '"step":3' in line)
    (tmp_path / "r" / "events.jsonl").write_text("".join(lines[: last + 1]) + "\0" * 40, encoding="utf-8")
    for name in ("plan.json", "plan.copy.json"):  # stored with full paths
        plan = (tmp_path / "r" / name).read_text(encoding="utf-8")
        (tmp_path / "r" / name).write_text(plan.replace(str(home), str(tmp_path)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(make_plan, "probe", lambda output, cache: load_machine("cpu-only"))
    return tmp_path


def losses(folder: Path) -> dict[int, float]:
    return {e.step: e.loss for e in all_events(folder / "events.jsonl") if isinstance(e, StepEvent)}


def zero_half(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"\0" * (len(data) - len(data) // 2))


def test_a_damaged_checkpoint_is_passed_over_by_the_advised_resume(here: Path, home: Path) -> None:
    """Of the right size, so that only its digest tells; the plan is gone, too, and the last line is of zeros."""
    assert {p.name for p in (here / "r").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3"}
    zero_half(here / "r" / "checkpoint-3" / "adapter_model.safetensors")
    (here / "r" / "plan.json").write_bytes(b"")
    elsewhere = {"output": str(here / "elsewhere"), "cache": str(here / "elsewhere"), "local_dir": str(here / "else")}
    say_in(here / "r" / "plan.copy.json", **elsewhere)
    (here / "r" / "mine.txt").write_text("mine", encoding="utf-8")
    done = process("resume", "r", cwd=here)
    assert done.returncode == 0, done.stderr
    assert b"the plan is taken from its copy, plan.copy.json" in b" ".join(done.stdout.split())
    past = all_events(here / "r" / "events.jsonl")
    assert [e.first_step for e in past if isinstance(e, RunEvent)] == [1, 3]
    (said,) = [e.message for e in past if isinstance(e, WarningEvent) and "passed over" in e.message]
    assert said.endswith("adapter_model.safetensors is not as it was written")
    assert losses(here / "r") == losses(home / "r")
    assert look(here / "r").note == ""
    assert not list(here.glob("else*"))
    assert (here / "r" / "mine.txt").read_text(encoding="utf-8") == "mine"
    ours, theirs = (load_file(at / "r" / "lora_adapter" / "adapter_model.safetensors") for at in (here, home))
    assert all(ours[name].equal(theirs[name]) for name in theirs)


@pytest.mark.parametrize("damage", ["gone", "zero bytes", "cut", "zeros"])
def test_without_any_plan_the_way_that_works_is_named(damage: str, here: Path, capsys: Caught) -> None:
    path = here / "r" / "plan.json"
    whole = path.read_bytes()
    (here / "r" / "plan.copy.json").unlink()
    path.unlink()
    if damage != "gone":
        path.write_bytes({"zero bytes": b"", "cut": whole[: len(whole) // 2], "zeros": b"\0" * len(whole)}[damage])
    way = "--resume r/checkpoint-3 --output r-2"
    for argv in (("--auto", *ARGV), ("resume", "r"), ("replay", "r")):
        text = refused(capsys, *argv)
        assert way in text
        assert "--overwrite" not in text.split(way)[0]


def test_the_way_without_a_plan_works(here: Path, home: Path, capsys: Caught) -> None:
    for name in ("plan.json", "plan.copy.json"):
        (here / "r" / name).unlink()
    shutil.copytree(here / "r", here / "runs" / "tiny-1")
    text = said(capsys, "--auto", *ARGV[:-2], "--dry-run")  # it would begin anew under runs, and says so
    assert "its plan.json is lost: --resume runs/tiny-1/checkpoint-3 goes on" in " ".join(text.split())
    done = process("--auto", *ARGV[:-2], "--resume", "r/checkpoint-3", "--output", "r-2", cwd=here)
    assert done.returncode == 0, done.stderr
    assert losses(here / "r-2") == {4: losses(home / "r")[4]}


def other_weights(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(weights | {name: weights[name] + 0.01}, base / "model.safetensors", metadata={"format": "pt"})


def other_template(base: Path) -> None:
    (base / "chat_template.jinja").write_text(CHATML.replace("\n", "\n\n"), encoding="utf-8")


def other_token(base: Path) -> None:
    tokenizer = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][-1] | {"id": 319, "content": "fox"})
    (base / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")


def other_config(base: Path) -> None:
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}), encoding="utf-8")


CHANGES: dict[str, Callable[[Path], None]] = {
    "tiny with other weights": other_weights,
    "with other text": other_template,
    "tiny with other tokenizer": other_token,
    "tiny with other config": other_config,
}


@pytest.mark.parametrize("named", CHANGES)
def test_a_base_that_was_exchanged_is_refused_by_name(named: str, here: Path, capsys: Caught) -> None:
    CHANGES[named](here / "tiny")
    before = contents(here)
    for argv in (("resume", "r"), ("replay", "r"), ("--auto", *ARGV)):
        text = refused(capsys, *argv)
        assert named in text
        assert "--output" in text or argv[0] == "replay"
        assert "qlora-run resume r" not in text, "that would be refused as well"
    if named == "tiny with other weights":  # an automatic restart plans nothing anew: the core looks, too
        assert process("r/plan.json", cwd=here, command=(sys.executable, "-m", "qlora_core")).returncode == 2
    assert {name: d for name, d in contents(here).items() if "r/" not in name} == {
        name: d for name, d in before.items() if "r/" not in name
    }


def test_the_same_base_elsewhere_and_newer_is_the_same(here: Path, capsys: Caught) -> None:
    (here / "tiny").rename(here / "moved")
    for path in (here / "moved").iterdir():
        os.utime(path, (1, 1))
    config = json.loads((here / "moved" / "config.json").read_text(encoding="utf-8"))
    (here / "moved" / "config.json").write_text(json.dumps(config), encoding="utf-8")  # laid out otherwise
    assert "Writes to r" in said(capsys, "--auto", *ARGV, "--model", "moved", "--dry-run")


def test_a_damaged_adapter_is_told_and_a_changed_base_too(home: Path, here: Path, capsys: Caught) -> None:
    shutil.copytree(home / "r" / "lora_adapter", here / "r" / "lora_adapter")
    record = here / "r" / "lora_adapter" / "base.json"
    record.write_text(record.read_text(encoding="utf-8").replace(str(home), str(here)), encoding="utf-8")
    other_weights(here / "tiny")
    text = refused(capsys, "merge", "r")
    assert "tiny: other weights than r/lora_adapter was trained on" in text
    assert "--base tiny" in text
    zero_half(here / "r" / "lora_adapter" / "adapter_model.safetensors")
    done = process("infer", "r", "--prompt", "say", "--max-new-tokens", "2", cwd=here)
    assert done.returncode == 2
    assert b"warning: tiny: other weights" in done.stderr
    assert b"adapter_model.safetensors: damaged since it was written" in done.stderr
    assert b"Traceback" not in done.stderr


def say_in(path: Path, **values: Any) -> None:
    """Let a plan say other run settings, as if somebody had typed them."""
    plan = codec.load(path, RunPlan)
    run = {name: Resolved(value, "cli") for name, value in values.items()}
    codec.save(msgspec.structs.replace(plan, run=plan.run | run), path)


def with_code(base: Path, witness: Path) -> None:
    """A base whose own Python leaves ``witness``."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    auto = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    config |= {"auto_map": auto, "model_type": "brand_new"}
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (base / "own.py").write_text(f"open({str(witness)!r}, 'w').write('ran')\nclass Own: pass\n", encoding="utf-8")


def test_a_received_folder_switches_no_code_on(here: Path, capsys: Caught) -> None:
    witness = here / "witness"
    with_code(here / "tiny", witness)
    for name in ("plan.json", "plan.copy.json"):
        say_in(here / "r" / name, trust_remote_code=True)
    (here / "qlora-run.yaml").write_text("trust_remote_code: true\n", encoding="utf-8")
    for argv in (("resume", "r"), ("replay", "r"), ("--auto", *ARGV), ("plan", *ARGV)):
        assert "-> --trust-remote-code" in refused(capsys, *argv)
    core = process("r/plan.json", cwd=here, command=(sys.executable, "-m", "qlora_core"))
    assert core.returncode in (1, 2)
    assert not witness.exists()
    (here / "named.yaml").write_text("trust_remote_code: true\n", encoding="utf-8")
    for typed in (("--trust-remote-code",), ("--config", "named.yaml")):
        main(["plan", *ARGV, *typed])
        assert "comes with Python code" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["events.jsonl", "run.log", "lora_adapter", "checkpoint-3/optimizer.pt", ".running", ".running-core"]
)
def test_nothing_is_written_through_a_link_out_of_the_folder(name: str, here: Path, capsys: Caught) -> None:
    outside = here / "outside"
    outside.mkdir()
    (outside / "precious").write_text("half a line", encoding="utf-8")
    link = here / "r" / name
    if link.is_file():
        link.unlink()
    link.symlink_to(outside if name == "lora_adapter" else outside / "precious")
    done = process("resume", "r", cwd=here)
    assert done.returncode == 2
    assert f"r/{name}: a link to ".encode() in done.stderr
    assert (outside / "precious").read_text(encoding="utf-8") == "half a line"
