"""What a run leaves behind works in plain PEFT and plain transformers, and says what the trained model says."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from support.adapted import difference
from support.models import save_tiny_model, write_rows
from support.plans import plan

from qlora_core.export.merge import merge
from qlora_core.inference.generate import Sampling
from qlora_profiles import codec, events, run_folder
from qlora_profiles.errors import UserError
from qlora_profiles.jobs import ChatJob, MergeJob

IDS = torch.arange(5, 45)[None]


def core(*arguments: str, text: str | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, encoding="utf-8", input=text, timeout=240
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a merged model, trained hard enough to differ from its base."""
    folder = tmp_path_factory.mktemp("artifacts")
    model = save_tiny_model(folder / "base")
    output = folder / "out"
    output.mkdir()
    settings: dict[str, Any] = {"merge": True, "steps": 10, "sample_prompts": ["say the quick fox"]}
    codec.save(plan(model, write_rows(folder / "rows.jsonl"), output, **settings), output / "plan.json")
    done = core("qlora_core", str(output / "plan.json"))
    assert done.returncode == 0, done.stderr
    return output


def base(run: Path, **arguments: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(run.parent / "base"), dtype=torch.float32, **arguments).eval()


def adapted(run: Path, **arguments: Any) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(base(run, **arguments), str(run / "lora_adapter")).eval()


def test_the_adapter_loads_in_plain_peft_and_changes_the_model(run: Path) -> None:
    assert difference(base(run), adapted(run)) > 0.1


def test_the_merged_model_says_what_the_adapter_says(run: Path) -> None:
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(str(run / "final_model"), dtype=torch.float32).eval()
    assert difference(adapted(run), merged) < 1e-4


def test_merging_into_the_published_base_stays_near_the_4_bit_model_that_was_trained(run: Path) -> None:
    from transformers import BitsAndBytesConfig

    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    trained = adapted(run, quantization_config=four_bit)
    assert difference(trained, adapted(run)) < 0.5 * difference(trained, base(run, quantization_config=four_bit))


def test_the_merged_model_stops_at_the_trained_token(run: Path) -> None:
    config = json.loads((run / "final_model" / "generation_config.json").read_text(encoding="utf-8"))
    stop = json.loads((run / "lora_adapter" / run_folder.BASE_RECORD).read_text(encoding="utf-8"))["stop_ids"]
    assert config["eos_token_id"] == stop == [2]
    assert (run / "final_model" / "tokenizer.json").is_file()
    assert list((run / "final_model").glob("*.safetensors"))


def test_samples_are_answered_before_and_after(run: Path) -> None:
    samples = [e for e in events.all_events(run / run_folder.EVENTS) if isinstance(e, events.SampleEvent)]
    assert [e.step for e in samples] == [0, 10]
    assert samples[0].samples[0].answer != samples[1].samples[0].answer


def test_a_merge_into_a_used_folder_is_refused(run: Path) -> None:
    with pytest.raises(UserError, match="holds a model already"):
        merge(run / "lora_adapter", run / "final_model")


def test_a_merge_with_another_base_is_refused(run: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", num_hidden_layers=2)
    with pytest.raises(UserError, match=r"another base than the adapter's \(qwen3, 2 layers of 64"):
        merge(run / "lora_adapter", tmp_path / "merged", base=str(other))


def json_of(job: Any) -> str:
    return msgspec.json.encode(job).decode()


def test_the_merge_command_checks_and_tries(run: Path, tmp_path: Path) -> None:
    job = MergeJob(target=str(run), output=str(tmp_path / "merged"), validate=True, test_prompt="say the quick fox")
    done = core("qlora_core.jobs.merge", json_of(job))
    assert done.returncode == 0, done.stderr
    assert "template and logits are the same in plain transformers" in done.stdout
    assert (tmp_path / "merged" / "config.json").is_file()


@pytest.mark.parametrize("changes", [{}, {"merged": True}, {"load_in_4bit": True}])
def test_one_answer(run: Path, changes: dict[str, Any]) -> None:
    job = ChatJob(target=str(run), prompt="say the quick fox", temperature=0.0, max_new_tokens=24, **changes)
    done = core("qlora_core.jobs.chat", json_of(job))
    assert done.returncode == 0, done.stderr
    assert "<|im_end|>" not in done.stdout
    assert done.stdout.strip()


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe without a reader")
def test_an_answer_that_nobody_reads_ends_quietly(run: Path) -> None:
    read, write = os.pipe()
    os.close(read)  # as in: qlora-run infer FOLDER --prompt "..." | head -1
    job = ChatJob(target=str(run), prompt="say the quick fox", max_new_tokens=8)
    command = [sys.executable, "-u", "-m", "qlora_core.jobs.chat", json_of(job)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=240)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_conversation_until_quit(run: Path) -> None:
    job = ChatJob(target=str(run), temperature=0.0, max_new_tokens=12)
    done = core("qlora_core.jobs.chat", json_of(job), text="say the quick fox\n\nsay the fox\nquit\nnever asked\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("> ") == 4


def test_chat_with_nothing_trained_is_one_line(tmp_path: Path) -> None:
    done = core("qlora_core.jobs.chat", json_of(ChatJob(target=str(tmp_path))))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "nothing was finished here" in done.stderr


def test_sampling_defaults_are_those_of_the_help() -> None:
    assert (Sampling().temperature, Sampling().top_p, Sampling().max_new_tokens) == (0.7, 0.9, 512)
    assert ChatJob(target="x").temperature == Sampling().temperature
