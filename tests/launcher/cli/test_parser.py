import shlex
from typing import Any

import pytest

from qlora_profiles.errors import EXIT_USER, UserError
from qlora_run.cli.commands import COMMANDS
from qlora_run.cli.parser import parse_command


def parsed(line: str) -> Any:
    return parse_command(shlex.split(line))


@pytest.mark.parametrize("line", ["", "-h", "--help", "help", "train --help", "--model m --help"])
def test_help_needs_no_more_than_asking(line: str) -> None:
    command = parsed(line)
    assert (command.name, command.options) == ("help", {"topic": None})


@pytest.mark.parametrize("name", [n for n in COMMANDS if n not in ("help", "train", "version")])
def test_every_command_has_help_of_its_own(name: str) -> None:
    assert parsed(f"{name} --help").options == {"topic": name}


def test_without_a_command_it_trains() -> None:
    command = parsed("--auto --model m --data d.jsonl")
    assert command.name == "train"
    assert command.options["auto"] is True
    assert command.given_options == ("auto",)
    assert command.raw_settings == (("--model", "m"), ("--data", "d.jsonl"))
    assert parsed("train --auto --model m --data d.jsonl") == command


def test_version() -> None:
    assert parsed("--version").name == parsed("version").name == "version"


def test_dashes_and_underscores_and_equals_signs_are_alike() -> None:
    written = [parsed(line).raw_settings[0] for line in ("--max-steps 5", "--max_steps 5", "--max-steps=5")]
    assert written == [("--max-steps", "5"), ("--max_steps", "5"), ("--max-steps", "5")]


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("--merge", "true"),
        ("--merge true", "true"),
        ("--merge True", "true"),
        ("--merge=false", "false"),
        ("--merge no", "no"),
        ("--no-merge", "false"),
        ("--merge --seed 1", "true"),
    ],
)
def test_ways_to_say_true_or_false(line: str, value: str) -> None:
    assert parsed(line).raw_settings[0] == ("--merge", value)


def test_a_flag_takes_no_word_that_is_not_true_or_false() -> None:
    command = parsed("merge --validate runs/a -o m")
    assert command.options["validate"] is True
    assert command.options["adapter"] == "runs/a"
    assert command.options["output"] == "m"


def test_foreign_flags_without_a_value() -> None:
    pairs = dict(
        parsed("--use_lora --no-use_unsloth --group_by_length --resume_from_checkpoint --lora_r 64").raw_settings
    )
    assert pairs == {
        "--use_lora": "true",
        "--use_unsloth": "false",
        "--group_by_length": "true",
        "--resume_from_checkpoint": "true",
        "--lora_r": "64",
    }


def test_negative_numbers_and_text_with_a_dash_are_values() -> None:
    assert parsed("--max_steps -1").raw_settings == (("--max_steps", "-1"),)
    assert parsed("infer --prompt '- a list'").options["prompt"] == "- a list"
    assert parsed("--learning-rate=-1e-4").raw_settings == (("--learning-rate", "-1e-4"),)


def test_short_output() -> None:
    assert parsed("-o runs/a").raw_settings == (("--output", "runs/a"),)


# Command lines that people have for other scripts, options unchanged.
TRAINING_LINES = [
    """--data_path training_data.jsonl --output_dir finetune/models/qwen3-8b-qlora --per_device_train_batch_size 1
       --gradient_accumulation_steps 16 --learning_rate 2e-4 --num_train_epochs 3 --lora_r 16 --lora_alpha 32
       --lora_dropout 0.05 --logging_steps 20 --save_steps 200""",
    """--repo_id Qwen/Qwen3-8B-Base --local_dir qwen3-8b-base --trust_remote_code True --use_unsloth False
       --use_qlora True --data_path training_data.jsonl --max_samples None --model_max_length 2048 --seed 42
       --target_modules q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj --weight_decay 0.0 --max_steps -1
       --warmup_ratio 0.05 --lr_scheduler_type cosine --save_total_limit 2 --gradient_checkpointing True
       --merge_and_save True --fp16 True --optim adamw_torch_fused --dataloader_pin_memory False
       --dataloader_num_workers 0""",
    """--data_path my_data.jsonl --output_dir my_model --per_device_train_batch_size 2
       --gradient_accumulation_steps 8""",
    "--use_unsloth true",
    "--config_file configs/train_config_lora.json",
    """--use_lora --lora_r 64 --lora_alpha 16 --data_path data/samples.jsonl --output_dir ./output_lora
       --learning_rate 1e-4""",
    "--input ./data/input.csv --output ./data/training_data.jsonl --format csv --instruction_col question_text",
    "./configs/lora_config.yaml ./data ./output",
    "./custom_config.yaml",
    "--data_path ./my_data.json --model_path google/gemma-3-4b-it --epochs 5 --batch_size 2 --output_path ./my_model",
]


@pytest.mark.parametrize("line", TRAINING_LINES)
def test_command_lines_of_other_scripts_train(line: str) -> None:
    command = parsed(line)
    assert command.name == "train"
    options = [word for word in shlex.split(line) if word.startswith("--")]
    assert len(command.raw_settings) + len(command.given_options) >= len(options)


@pytest.mark.parametrize(
    ("line", "name", "options"),
    [
        ("infer --prompt hello", "infer", {"prompt": "hello"}),
        ("chat", "chat", {}),
        (
            "chat --base_dir base --adapter_dir out --max_new_tokens 512 --temperature 0.7 --top_p 0.9",
            "chat",
            {"base": "base", "adapter": "out", "max_new_tokens": 512, "temperature": 0.7, "top_p": 0.9},
        ),
        ("chat --adapter_dir out --merged true", "chat", {"adapter": "out", "merged": True}),
        ("infer --base_model B --lora_model L", "infer", {"base": "B", "adapter": "L"}),
        ("infer --base_model B --lora_model L --load_in_4bit", "infer", {"load_in_4bit": True}),
        ("infer --base_model B --lora_model L --chat", "chat", {"base": "B", "adapter": "L"}),
        ("infer runs/a --trust_remote_code True", "infer", {"adapter": "runs/a", "trust_remote_code": True}),
        ("merge out/lora -o ./merged", "merge", {"adapter": "out/lora", "output": "./merged"}),
        (
            "merge --base_model B --lora_adapter L --output_dir M --validate --test_prompt 'Who are you?'",
            "merge",
            {"base": "B", "adapter": "L", "output": "M", "validate": True, "test_prompt": "Who are you?"},
        ),
        (
            "merge B L M bfloat16 true",
            "merge",
            {"base": "B", "adapter": "L", "output": "M", "dtype": "bfloat16", "validate": True},
        ),
        ("resume runs/a", "resume", {"folder": "runs/a"}),
        ("replay runs/a --dry-run", "replay", {"folder": "runs/a", "dry_run": True}),
        ("profiles show small", "profiles", {"show": "small"}),
        ("profiles", "profiles", {"show": None}),
        ("plan --from plan.json --as laptop --json", "plan", {"from": "plan.json", "as": "laptop", "json": True}),
        ("help SETTINGS", "help", {"topic": "SETTINGS"}),
        ("doctor", "doctor", {"json": False, "as": None}),
        ("demo --yes", "demo", {"yes": True}),
    ],
)
def test_other_commands(line: str, name: str, options: dict[str, Any]) -> None:
    command = parsed(line)
    assert command.name == name
    assert command.options | options == command.options


def test_the_last_of_one_option_counts_and_two_names_must_agree() -> None:
    assert parsed("chat a --temperature 1 --temperature 0.5").options["temperature"] == 0.5
    assert parsed("chat a --adapter_dir a").options["adapter"] == "a"
    with pytest.raises(UserError, match="--adapter_dir b contradicts --adapter a"):
        parsed("chat a --adapter_dir b")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("paln", "unknown command paln; did you mean plan?  -> qlora-run --help"),
        ("my.jsonl", "my.jsonl is no command  -> qlora-run --auto --model MODEL --data my.jsonl"),
        ("--lerning-rate 1", "unknown option --lerning-rate; did you mean --learning-rate?"),
        ("--lerning_rate=1", "unknown option --lerning_rate; did you mean --learning-rate?"),
        ("--num_train_epoch 1", "did you mean --num-train-epochs?"),
        ("--lora 1", "unknown option --lora; did you mean --lora-r?"),
        ("--zzzzzz", "unknown option --zzzzzz  -> qlora-run help SETTINGS"),
        ("--lora-r", "--lora-r needs a value"),
        ("--no-merge=1", "--no-merge takes no value"),
        ("--json plan", "unexpected word plan; the command comes first"),
        ("--target_modules q_proj v_proj", "unexpected word v_proj; a list is written with commas"),
        ("x.yaml a b c", "unexpected word x.yaml"),
        ("chat --lora-r 8", "chat takes no --lora-r; it belongs to training"),
        ("--prompt hello", "train takes no --prompt; it belongs to qlora-run chat"),
        ("resume runs/a --lora_r 8", "resume keeps what is learned, so --lora_r cannot be given"),
        ("replay runs/a --num_train_epochs 8", "replay keeps what is learned"),
        ("resume", "resume needs a folder"),
        ("merge", "merge needs a folder"),
        ("merge a b", "merge: unexpected word b"),
        ("chat a b", "chat: unexpected word b"),
        ("doctor now", "doctor: unexpected word now"),
        ("profiles shw small", "profiles: unexpected word small  -> qlora-run profiles show NAME"),
        ("chat a --temperature -1", "--temperature: '-1' is not allowed; a number, at least 0"),
        ("chat a --top_p 2", "--top_p: '2' is not allowed"),
        ("chat a --max-new-tokens x", "--max-new-tokens: 'x' is not allowed"),
        ("merge a --dtype int8", "--dtype: 'int8' is not allowed; one of bfloat16, float16, float32"),
        ("-x", "unknown option -x"),
    ],
)
def test_a_mistake_is_one_line_with_the_way_on(line: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        parsed(line)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == EXIT_USER


def test_an_abbreviation_is_no_option() -> None:
    with pytest.raises(UserError, match="unknown option --learning"):
        parsed("--learning 1")


def test_values_may_hold_any_text() -> None:
    assert parsed("infer --prompt '你好，介绍一下你自己'").options["prompt"] == "你好，介绍一下你自己"
    assert parsed("infer --prompt none").options["prompt"] == "none"
    assert parsed("merge a --test-prompt 'a=b --c'").options["test_prompt"] == "a=b --c"
