import shlex
from pathlib import Path
from typing import Any

import pytest

from qlora_profiles.alias import Alias
from qlora_profiles.aliases import ROWS
from qlora_profiles.errors import UserError
from qlora_profiles.plan import MachineClass, Profile, Request
from qlora_profiles.registry import settings
from qlora_run.cli.parser import parse_command
from qlora_run.cli.request import build_request, config_of, with_config_options

RENAMED = [row for row in ROWS if "train" in row.where and row.to and not row.words and not row.convert]
RENAMED = [row for row in RENAMED if row.to[0] in settings()]


def asked(cwd: Path, line: str, config: str | None = None, profile: dict[str, Any] | None = None) -> Request:
    if config is not None:
        (cwd / "run.yaml").write_text(config, encoding="utf-8")
        line += " --config run.yaml"
    made = None
    if profile is not None:
        made = Profile(name="small", about="", machine=MachineClass(), settings=profile)
    return build_request(parse_command(shlex.split(line)), made, cwd)


def values(request: Request) -> dict[str, Any]:
    return {name: given.value for name, given in request.given.items()}


def sample_value(name: str) -> str:
    setting = settings()[name]
    if name == "devices":
        return "0,1"
    return setting.choices[0] if setting.choices else {bool: "true", str: "text", tuple: "a,b"}.get(setting.kind, "1")


@pytest.mark.parametrize("name", settings())
def test_every_setting_can_be_given_on_the_command_line_and_in_a_file(name: str, tmp_path: Path) -> None:
    text = (
        "12GiB"
        if name in ("vram_budget_bytes", "leave_free_bytes")
        else "0.5"
        if "ratio" in name or "beta" in name
        else sample_value(name)
    )
    text = "0.5" if name == "lora_dropout" else text
    from_line = asked(tmp_path, f"--{name} {text}")
    from_file = asked(tmp_path, "", f"{name}: {text}\n")
    assert values(from_line) == values(from_file)
    assert from_line.given[name].source == "cli"
    assert from_file.given[name].source == "config"
    assert from_line.notes == ()


@pytest.mark.parametrize("row", RENAMED, ids=lambda row: row.name)
def test_a_foreign_name_is_the_same_as_the_own_one(row: Alias, tmp_path: Path) -> None:
    text = "0.5" if row.to[0] == "lora_dropout" else sample_value(row.to[0])
    own = asked(tmp_path, f"--{row.to[0]} {text}")
    section = "lora_config:\n  " if row.section == "lora" else ""
    assert values(asked(tmp_path, "", f"{section}{row.name}: {text}\n")) == values(own)
    if not row.section:
        assert values(asked(tmp_path, f"--{row.name} {text}")) == values(own)


def test_later_ones_win(tmp_path: Path) -> None:
    profile = {"lora_r": 8, "lora_alpha": 8, "epochs": 1, "method": "qlora-4"}
    request = asked(tmp_path, "--epochs 5", "lora_rank: 16\nepochs: 2\n", profile)
    assert values(request) == {"lora_r": 16, "lora_alpha": 8.0, "epochs": 5.0, "method": "qlora-4"}
    assert {name: given.source for name, given in request.given.items()} == {
        "lora_r": "config",
        "lora_alpha": "profile",
        "epochs": "cli",
        "method": "profile",
    }
    assert request.profile is not None
    assert request.profile.name == "small"


def test_a_value_knows_what_it_was_read_from(tmp_path: Path) -> None:
    request = asked(tmp_path, "--num_train_epochs 5", "lora_config:\n  r: 16\n", {"lora_alpha": 8})
    read = {name: (given.written.label, given.written.place) for name, given in request.given.items()}
    assert read == {
        "lora_alpha": ("lora_alpha", "profile small"),
        "lora_r": ("lora_config.r", "run.yaml:2"),
        "epochs": ("--num_train_epochs", ""),
    }
    assert request.given["epochs"].reason == "your num_train_epochs 5"


def test_auto_hands_a_tuned_setting_back_and_none_is_a_value_elsewhere(tmp_path: Path) -> None:
    request = asked(tmp_path, "--max-length auto --max_steps -1", profile={"max_length": 512, "max_steps": 10})
    assert "max_length" not in request.given
    assert request.given["max_steps"].value is None
    assert request.given["max_steps"].source == "cli"


def test_batch_and_accumulation_may_come_from_different_places(tmp_path: Path) -> None:
    config = "training_args:\n  per_device_train_batch_size: 1\n  gradient_accumulation_steps: 8\n"
    request = asked(tmp_path, "", config)
    assert request.given["examples_per_step"].value == 8
    assert request.given["examples_per_step"].reason == "your batch 1 x accumulation 8"
    assert asked(tmp_path, "--batch_size 2", config).given["examples_per_step"].value == 16
    assert asked(tmp_path, "--examples-per-step 4", config).given["examples_per_step"].value == 4


def test_what_was_assumed_is_told_only_while_it_counts(tmp_path: Path) -> None:
    config = "per_device_train_batch_size: 2\n"
    alone = asked(tmp_path, "", config)
    assert values(alone) == {"examples_per_step": 32}
    assert alone.notes == ("per_device_train_batch_size 2 alone: read with accumulation 16, so 32 examples per step",)
    both = asked(tmp_path, "--gradient_accumulation_steps 4", config)
    assert values(both) == {"examples_per_step": 8}
    assert both.notes == ()
    assert asked(tmp_path, "--examples_per_step 4", config).notes == ()


def test_an_own_name_in_a_stronger_place_ends_the_weaker_parts(tmp_path: Path) -> None:
    request = asked(tmp_path, "--per_device_train_batch_size 2", "examples_per_step: 4\n", {"examples_per_step": 64})
    assert values(request) == {"examples_per_step": 32}


def test_a_line_of_another_script_in_full(tmp_path: Path) -> None:
    request = asked(
        tmp_path,
        """--repo_id Qwen/Qwen3-8B-Base --local_dir qwen3-8b-base --trust_remote_code True --use_unsloth False
        --use_qlora True --data_path training_data.jsonl --max_samples None --model_max_length 2048
        --output_dir out --seed 42 --lora_r 16 --lora_alpha 32 --lora_dropout 0.05
        --target_modules q_proj,k_proj --per_device_train_batch_size 1 --gradient_accumulation_steps 16
        --learning_rate 2e-4 --weight_decay 0.0 --num_train_epochs 3.0 --max_steps -1 --warmup_ratio 0.05
        --lr_scheduler_type cosine --logging_steps 20 --save_steps 200 --save_total_limit 2
        --gradient_checkpointing True --merge_and_save True --fp16 True --optim adamw_torch_fused
        --dataloader_pin_memory False --dataloader_num_workers 0""",
    )
    assert values(request) == {
        "model": "Qwen/Qwen3-8B-Base",
        "local_dir": "qwen3-8b-base",
        "trust_remote_code": True,
        "backend": "peft",
        "method": "qlora-4",
        "data": ("training_data.jsonl",),
        "max_samples": None,
        "max_length": 2048,
        "output": "out",
        "seed": 42,
        "lora_r": 16,
        "lora_alpha": 32.0,
        "lora_dropout": 0.05,
        "target_modules": ("q_proj", "k_proj"),
        "examples_per_step": 16,
        "learning_rate": 2e-4,
        "weight_decay": 0.0,
        "epochs": 3.0,
        "max_steps": None,
        "warmup_ratio": 0.05,
        "lr_scheduler": "cosine",
        "logging_steps": 20,
        "save_steps": 200,
        "save_total_limit": 2,
        "merge": True,
        "compute_dtype": "float16",
        "optimizer": "adamw",
        "optimizer_kernel": "fused",
        "pin_memory": False,
        "workers": 0,
    }
    assert len(request.notes) == 1
    assert request.notes[0].startswith("--gradient_checkpointing true sets nothing: as many layers recompute")


def test_a_file_with_sections_in_full(tmp_path: Path) -> None:
    request = asked(
        tmp_path,
        "",
        """\
model_name_or_path: Qwen/Qwen2.5-7B-Instruct
dataset_path: dataset/rows.jsonl
output_dir: output/model
resume_from_checkpoint: true
quantization_config:
  load_in_4bit: true
  bnb_4bit_quant_type: "nf4"
  bnb_4bit_compute_dtype: "bfloat16"
  bnb_4bit_use_double_quant: true
lora_config:
  r: 32
  lora_alpha: 64
  lora_dropout: 0.1
  target_modules: ["q_proj", "k_proj", "v_proj", "o_proj"]
  bias: "none"
training_args:
  num_train_epochs: 3
  per_device_train_batch_size: 1
  gradient_accumulation_steps: 8
  learning_rate: 2e-4
  logging_steps: 10
  save_steps: 100
  gradient_checkpointing: true
  dataloader_pin_memory: false
""",
    )
    assert values(request) == {
        "model": "Qwen/Qwen2.5-7B-Instruct",
        "data": ("dataset/rows.jsonl",),
        "output": "output/model",
        "resume": "auto",
        "method": "qlora-4",
        "quant_type": "nf4",
        "compute_dtype": "bfloat16",
        "double_quant": True,
        "lora_r": 32,
        "lora_alpha": 64.0,
        "lora_dropout": 0.1,
        "target_modules": ("q_proj", "k_proj", "v_proj", "o_proj"),
        "lora_bias": "none",
        "epochs": 3.0,
        "examples_per_step": 8,
        "learning_rate": 2e-4,
        "logging_steps": 10,
        "save_steps": 100,
        "pin_memory": False,
    }


def test_a_flat_file_in_full(tmp_path: Path) -> None:
    request = asked(
        tmp_path,
        "",
        """\
model_name_or_path: "./models/Qwen3-4B-Chat"
lora_rank: 64
lora_alpha: 128
lora_dropout: 0.05
lora_target_modules: null
num_train_epochs: 3
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
learning_rate: 5.0e-5
cutoff_len: 4096
bf16: true
gradient_checkpointing: true
group_by_length: true
resume_from_checkpoint: "./out/checkpoint-500"
attn_implementation: flash_attention_2
""",
    )
    assert values(request) == {
        "model": "./models/Qwen3-4B-Chat",
        "lora_r": 64,
        "lora_alpha": 128.0,
        "lora_dropout": 0.05,
        "target_modules": ("all-linear",),
        "epochs": 3.0,
        "examples_per_step": 16,
        "learning_rate": 5e-5,
        "max_length": 4096,
        "compute_dtype": "bfloat16",
        "resume": "./out/checkpoint-500",
        "attention": "flash",
    }
    assert [note.split(" sets nothing")[0] for note in request.notes] == [
        "run.yaml:12    gradient_checkpointing true",
        "run.yaml:13    group_by_length",
    ]


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ("use_lora: true", "lora"),
        ("use_lora: false\nuse_qlora: false", "full"),
        ("use_qlora: true\nquantization_bit: 4", "qlora-4"),
        ("use_lora: true\nuse_qlora: true\nquantization_bit: 8", "qlora-8"),
    ],
)
def test_the_method_of_a_file(config: str, method: str, tmp_path: Path) -> None:
    assert values(asked(tmp_path, "", config)) == {"method": method}


def test_the_method_on_the_command_line_replaces_the_files(tmp_path: Path) -> None:
    assert values(asked(tmp_path, "--use_qlora false", "use_qlora: true\nquantization_bit: 8\n")) == {"method": "lora"}
    assert values(asked(tmp_path, "--method auto", "use_qlora: true\n")) == {}


def test_options_of_a_data_script(tmp_path: Path) -> None:
    line = "--input in.csv --output rows.jsonl --format csv --instruction_col question_text --field output=answer"
    request = asked(tmp_path, line)
    assert values(request) == {
        "data": ("in.csv",),
        "data_format": "csv",
        "field": ("instruction=question_text", "output=answer"),
    }
    assert request.notes == ("--output rows.jsonl: no prepared copy is written, rows are read where they lie",)
    with pytest.raises(UserError, match="qlora-run demo"):
        asked(tmp_path, "--output rows.jsonl --format sample --num_samples 50")


def test_an_output_of_a_run_is_kept_whatever_it_is_called(tmp_path: Path) -> None:
    assert values(asked(tmp_path, "--data a.csv --output odd.json")) == {"data": ("a.csv",), "output": "odd.json"}


def test_lists_may_be_repeated_and_of_the_rest_the_last_counts(tmp_path: Path) -> None:
    line = "--target-modules q --target_modules v --sample-prompts 'a, b' --sample-prompts c --seed 1 --seed 2"
    assert values(asked(tmp_path, line)) == {"target_modules": ("q", "v"), "sample_prompts": ("a, b", "c"), "seed": 2}
    assert values(asked(tmp_path, "--data a.csv --data b.csv")) == {"data": ("a.csv", "b.csv")}
    assert values(asked(tmp_path, "--data a.csv --data a.csv")) == {"data": ("a.csv", "a.csv")}  # refused when read


@pytest.mark.parametrize(
    ("line", "config", "told"),
    [
        ("--lora_r 8 --lora_rank 9", None, "--lora_r 8 contradicts --lora_rank 9  -> remove one of them"),
        ("--fp16 --bf16", None, "--fp16 true contradicts --bf16 true"),
        ("--optim adamw_torch --optimizer-kernel fused", None, "contradicts"),
        ("--target_modules a --lora_target_modules b", None, "--target_modules a contradicts --lora_target_modules b"),
        (
            "--examples-per-step 8 --batch_size 2 --gradient_accumulation_steps 2",
            None,
            "--examples-per-step 8 contradicts batch_size and gradient_accumulation_steps (examples_per_step 4)",
        ),
        ("--batch_size 1 --per_device_train_batch_size 2", None, "contradicts"),
        ("--method lora --use_qlora", None, "--method lora contradicts use_qlora (method qlora-4)"),
        ("", "lora_config:\n  r: 8\nlora_r: 16\n", "run.yaml:2    lora_config.r 8 contradicts lora_r 16 (run.yaml:3)"),
        ("", "use_qlora: false\nload_in_4bit: true\n", "run.yaml:1    use_qlora false contradicts load_in_4bit true"),
        (
            "",
            "epochs: 0\n",
            "run.yaml:1    epochs: '0' is not allowed; a number, above 0, at most 100,000",
        ),
        ("", "num_train_epochs: x\n", "run.yaml:1    num_train_epochs: 'x' is not allowed; a number"),
        ("", "training_args:\n  optim: sgd\n", "run.yaml:2    training_args.optim: 'sgd' is not supported; one of"),
        ("--num_train_epochs x", None, "--num_train_epochs: 'x' is not allowed; a number, above 0"),
        ("--warmup_ratio 2", None, "--warmup_ratio: '2' is not allowed; a number, at least 0, below 1"),
        ("--vram 12", None, "--vram: '12' has no unit; write it like 12GiB"),
    ],
)
def test_a_wrong_or_contradicting_wish_is_one_line(line: str, config: str | None, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        asked(tmp_path, line, config)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_that_agree_do_not_contradict(tmp_path: Path) -> None:
    assert values(asked(tmp_path, "--lora_r 8 --lora_rank 8 --method qlora-4 --load_in_4bit")) == {
        "lora_r": 8,
        "method": "qlora-4",
    }


def test_a_wrong_profile_names_itself(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="profile small    lora_r: 0 is not allowed"):
        asked(tmp_path, "", profile={"lora_r": 0})
    with pytest.raises(UserError, match="unknown setting lora_rr; did you mean lora_r"):
        asked(tmp_path, "", profile={"lora_rr": 8})


def test_a_file_in_the_working_folder_is_found_and_said(tmp_path: Path) -> None:
    (tmp_path / "qlora-run.yaml").write_text("lora_r: 4\nprofile: small\nauto: true\n", encoding="utf-8")
    request = asked(tmp_path, "plan --model m")
    assert values(request) == {"lora_r": 4, "model": "m"}
    assert request.notes == ("settings are read from qlora-run.yaml in this folder",)
    assert asked(tmp_path, "resume runs/a").given == {}
    assert asked(tmp_path, "demo").given == {}


def test_a_named_file_replaces_the_one_in_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "qlora-run.yaml").write_text("lora_r: 4\n", encoding="utf-8")
    request = asked(tmp_path, "plan", "epochs: 2\n")
    assert values(request) == {"epochs": 2.0}
    assert request.notes == ()


def test_options_in_a_file_count_unless_the_command_line_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "qlora-run.yaml").write_text("profile: small\nauto: true\nyes: true\n", encoding="utf-8")
    command = with_config_options(parse_command(["--no-auto", "--model", "m"]), tmp_path)
    assert (command.options["profile"], command.options["auto"], command.options["yes"]) == ("small", False, True)
    assert command.given_options == ("auto", "profile", "yes")
    plan = with_config_options(parse_command(["plan"]), tmp_path)
    assert "yes" not in plan.options


def test_no_file_no_wishes(tmp_path: Path) -> None:
    command = parse_command(["--auto"])
    assert config_of(command, tmp_path) is None
    assert with_config_options(command, tmp_path) == command
    assert build_request(command, None, tmp_path) == Request()


def test_an_absolute_config_path_is_taken_as_it_is(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = tmp_path / "train.json"
    path.write_text('{"epochs": 2}', encoding="utf-8")
    request = build_request(parse_command(["--config_file", str(path)]), None, elsewhere)
    assert values(request) == {"epochs": 2.0}
