import io
import shlex
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from support.run_plans import data_facts, memory, run_plan

from qlora_profiles.facts import DataFacts, TimeEstimate
from qlora_profiles.hardware import Gpu
from qlora_profiles.plan import Resolved
from qlora_profiles.registry import lookup, parse, settings
from qlora_run.cli.parser import parse_command
from qlora_run.report.commands import start_command
from qlora_run.report.plan_changes import mixing_error
from qlora_run.terminal.console import make_console
from qlora_run.terminal.plan_diff import plan_diff_text
from qlora_run.terminal.plan_view import plan_text, print_plan

NOTES = (
    "unsloth is not installed; peft computes the same, about 30% slower on this card",
    "[red]brackets[/red] are text, and C:\\Users\\a\\a-long-folder-name-without-a-single-space-in-it-at-all\\x is long",
)
SLOW = TimeEstimate(steps=366, step_seconds=4500, seconds_low=1.4e6, seconds_high=1.7e6, basis="this CPU's speed")


def chinese_data() -> DataFacts:
    (source,) = data_facts().sources
    path = "数据/退款对话与售后服务记录二零二六年第三季度.jsonl"
    return msgspec.structs.replace(data_facts(), sources=(msgspec.structs.replace(source, path=path),))


def test_the_plan_names_the_template_and_what_is_learned() -> None:
    learned = "the model's own (ChatML form, thinking); learned: the answers and <|im_end|>"
    data = msgspec.structs.replace(data_facts(), learned=learned, mean_tokens=100.0, mean_supervised_tokens=62.0)
    shown = plan_text(msgspec.structs.replace(run_plan(), data=data), width=120)
    assert f"stop token trained\ntemplate  {learned}, 62% of tokens\n\nFITS" in shown


def test_the_plan_at_a_glance() -> None:
    assert plan_text(run_plan(), ascii=True) == (
        "Qwen3-8B | my.jsonl\n"
        "1,950 rows, longest 1,804 tokens, 0 cut, stop token trained\n"
        "\n"
        "FITS  10.0 of 11.2 GiB VRAM  [##################..]  1.2 spare (+/-0.2)\n"
        "  base 4-bit 5.7 | adapter, gradients, optimizer 0.5 | activations 2.1 |\n"
        "  loss 0.3 | kernels and context 1.4\n"
        "\n"
        "recipe (what is learned)      why                                         from\n"
        "  method             qlora-4  16-bit LoRA needs 19.8 GiB                  probe\n"
        "  max-length         2,048    covers 100% of rows                         data\n"
        "  examples-per-step  16       your batch 1 x accumulation 16              config\n"
        "  default  epochs 3, learning-rate 2e-4, lora-r 16, 31 more (plan --full)\n"
        "\n"
        "execution (how this machine does it)  why                   if changed\n"
        "  device             cuda\n"
        "  backend            peft      unsloth: Triton is missing\n"
        "                               (doctor)\n"
        "  compute-dtype      bfloat16\n"
        "  token-budget       4,096     fastest of 38 that fit       2,048: 9% slower,\n"
        "                                                            0.9 GiB less\n"
        "  layers-recomputed  22 of 36  the other 14 fit             36: 11% slower, 3.1\n"
        "                                                            GiB less\n"
        "  attention          varlen\n"
        "  also     vram-budget-bytes 11.2 GiB, loss-kernel chunked,\n"
        "           loss-chunk-tokens 1,024, optimizer-kernel fused,\n"
        "           adapter-kernel fused, dequantize-kernel triton, layer-kernels plain,\n"
        "           cuda-graphs no, workers 0, dataset-workers 0, pin-memory yes,\n"
        "           expandable-segments yes\n"
        "\n"
        "Time 62-80 min for 366 steps (measured on this card).\n"
        "Writes to runs/qwen3-8b-1\n"
        "Run: qlora-run --auto --model Qwen/Qwen3-8B --data my.jsonl --examples-per-step\n"
        "16\n"
    )


@pytest.mark.parametrize("full", [False, True])
@given(width=st.integers(60, 160))
def test_no_line_is_wider_than_asked(full: bool, width: int) -> None:
    plan = run_plan({"sample_prompts": ("退" * 90, "b" * 200)}, data=chinese_data(), notes=NOTES)
    assert max(map(cell_len, plan_text(plan, width=width, full=full).splitlines())) <= width


@pytest.mark.parametrize("full", [False, True])
def test_gbk_and_ascii_consoles_can_print_it(full: bool) -> None:
    text = plan_text(run_plan(data=chinese_data(), notes=NOTES), ascii=True, full=full)
    assert text.encode("gbk")
    assert plan_text(run_plan(notes=NOTES), ascii=True, full=full).isascii()
    assert not plan_text(run_plan(), full=full).isascii()


def test_full_shows_every_setting_once() -> None:
    words = [line.split()[0] for line in plan_text(run_plan(), full=True).splitlines() if line.startswith("  ")]
    assert [w for w in words if w.replace("-", "_") in settings()] == [n.replace("_", "-") for n in settings()]


def test_somebodys_values_have_a_row_that_says_whose_they_are() -> None:
    text = plan_text(run_plan({"lora_r": 16, "workers": 2, "seed": 7}))
    rows = [line.split() for line in text.splitlines()]
    assert [row for row in rows if row and row[0] in ("lora-r", "seed", "workers")] == [
        ["seed", "7", "cli"],
        ["lora-r", "16", "cli"],
        ["workers", "2", "from", "cli"],
    ]


def test_a_plan_that_does_not_fit_says_so_and_offers_no_command_to_start_it() -> None:
    text = plan_text(run_plan(memory=memory(1.4)))
    assert "DOES NOT FIT  14.0 of 11.2 GiB VRAM" in text
    assert "2.8 too much" in text
    assert "--allow-recipe-change" in text
    assert "Run:" not in text


def test_a_plan_within_its_error_of_the_budget_is_a_close_call() -> None:
    text = plan_text(run_plan(memory=memory(budget_gib=10.1)))
    assert "CLOSE  10.0 of 10.1 GiB" in text
    assert "only 0.1 spare (±0.2)" in text
    assert "Run:" in text


def test_small_plans_are_read_in_mib() -> None:
    text = plan_text(run_plan(memory=memory(0.02, budget_gib=None)))
    assert "NEEDS  205 MiB" in text
    assert "base 4-bit 117" in text


def test_what_was_measured_on_this_card_is_said() -> None:
    measured = msgspec.structs.replace(memory(), calibrated=True)
    assert "(±0.2, calibrated on this card)" in plan_text(run_plan(memory=measured), width=120)


def test_a_model_that_nobody_named_has_a_row_that_says_why_it_is_this_one() -> None:
    plan = run_plan()
    chosen = Resolved(value="Qwen/Qwen3-8B", source="probe", reason="the largest for a night")
    picked = msgspec.structs.replace(plan, recipe={**plan.recipe, "model": chosen})
    assert "the largest for a night" in plan_text(picked)
    assert "  model  " not in plan_text(plan)


def test_the_runner_up_is_named_with_why_it_lost() -> None:
    other = "6,144 tokens, 30 of 36 recomputed: 3% slower, 0.4 GiB less"
    assert f"Runner-up: {other}\n" in plan_text(run_plan(runner_up=other))
    assert "Runner-up" not in plan_text(run_plan())


def test_a_cpu_plan_is_honest_about_its_time() -> None:
    slow = plan_text(run_plan({"device": "cpu"}, memory=memory(budget_gib=None), time=SLOW))
    assert "CPU only: this would take about 20 days; use a GPU." in slow
    assert "VRAM" not in slow.split("recipe")[0]
    quick = msgspec.structs.replace(SLOW, seconds_low=90, seconds_high=120)
    assert "CPU only. Time 2 min for 366 steps" in plan_text(run_plan({"device": "cpu"}, time=quick))


def test_trouble_in_the_data_is_told_in_the_head() -> None:
    data = msgspec.structs.replace(data_facts(), rows_rejected=3, rows_dropped=2, stop_token="", exact=False)
    text = plan_text(run_plan(data=data))
    head = " ".join(text.split("FITS")[0].split())
    assert "about 1,950 rows, longest about 1,804 tokens, 0 cut, 3 damaged and set aside, 2 dropped" in head
    assert "NO stop token: answers will not end" in head


def test_notes_are_whole_and_plain_text() -> None:
    text = " ".join(
        plan_text(run_plan(notes=NOTES, data=msgspec.structs.replace(data_facts(), notes=("cut",)))).split()
    )
    assert NOTES[0] in text
    assert "note [red]brackets[/red] are text" in text
    assert "note cut" in text


def test_the_command_starts_the_same_plan() -> None:
    given_values: dict[str, Any] = {
        "learning_rate": 5e-5,
        "double_quant": False,
        "target_modules": ("q_proj", "v_proj"),
        "sample_prompts": ("Refund after 30 days?", "How, exactly?"),
        "output": "my runs/a",
    }
    plan = run_plan(given_values, profile="windows-8gb")
    command = parse_command(shlex.split(start_command(plan))[1:])
    assert command.options["auto"] is True
    assert command.options["profile"] == "windows-8gb"
    raw: dict[str, list[str]] = {}
    for flag, text in command.raw_settings:
        raw.setdefault(lookup(flag.removeprefix("--")).name, []).append(text)
    prompts = raw.pop("sample_prompts")
    parsed = {name: parse(lookup(name), texts[-1]) for name, texts in raw.items()}
    expected = given_values | {"model": "Qwen/Qwen3-8B", "data": ("my.jsonl",), "examples_per_step": 16}
    assert parsed | {"sample_prompts": tuple(prompts)} == expected


def test_a_console_shows_the_same_but_leaves_the_command_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    out = io.TextIOWrapper(io.BytesIO(), encoding="gbk", newline="\n")
    print_plan(run_plan(), make_console(out))
    out.flush()
    assert isinstance(out.buffer, io.BytesIO)
    text = out.buffer.getvalue().decode("gbk")
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[-1].endswith("--data my.jsonl --examples-per-step 16")
    assert lines[:-1] == plan_text(run_plan(), ascii=True).splitlines()[:-2]


def test_plans_that_learn_the_same() -> None:
    other = run_plan(report=msgspec.structs.replace(run_plan().report, gpus=(Gpu(name="H200"),)))
    other.execution["token_budget"] = Resolved(value=16384, source="tuner")
    text = plan_diff_text(run_plan(), other)
    assert "recipe: the same" in text
    assert "execution:\n  token-budget 4,096 -> 16,384\n" in text
    assert "this machine, RTX 3060, torch 2.13.0 -> this machine, H200, torch 2.13.0" in text
    assert "peak 10.0 -> 10.0 GiB   time 62-80 min -> 62-80 min" in text


def test_plans_that_learn_otherwise() -> None:
    text = plan_diff_text(run_plan(), run_plan({"learning_rate": 0.5}), ascii=True)
    assert text.startswith("recipe: DIFFERENT, so something else is learned\n  learning-rate 2e-4 -> 0.5\n")
    assert "execution: the same" in text


def test_runs_are_not_mixed_and_both_ways_on_are_offered() -> None:
    (source,) = data_facts().sources
    data = msgspec.structs.replace(data_facts(), sources=(msgspec.structs.replace(source, fingerprint="data-2"),))
    error = mixing_error(run_plan(), run_plan({"learning_rate": 0.5}, data=data), "runs/a b", 151, "runs/c")
    assert error.message == (
        "runs/a b stopped at step 151. Changed since: learning-rate 2e-4 -> 0.5, data (other content in my.jsonl). "
        "Refusing to mix."
    )
    assert error.fix == 'qlora-run resume "runs/a b" (old settings)   or   --output runs/c'
    stored = run_plan({"data": (str(Path("my.jsonl").absolute()),)})  # a plan on disk names it in full
    assert "data (other content in my.jsonl)" in mixing_error(stored, run_plan(data=data), "a", 1, "b").message


def test_a_finished_run_did_not_stop_and_cannot_be_gone_on_with() -> None:
    error = mixing_error(run_plan(), run_plan({"learning_rate": 0.5}), "runs/a", 151, "runs/c d", finished=True)
    assert error.message == "runs/a finished at step 151. Changed since: learning-rate 2e-4 -> 0.5. Refusing to mix."
    assert error.fix == '--output "runs/c d"   or   --overwrite to lose the old run'


def test_a_refusal_names_a_few_differences_and_counts_the_rest() -> None:
    changed = {"learning_rate": 0.5, "lora_r": 8, "seed": 1, "epochs": 1.0, "weight_decay": 0.1}
    assert "and 2 more. Refusing" in mixing_error(run_plan(), run_plan(changed), "a", 1, "b").message


def test_warnings_of_the_data_stand_on_the_first_screen_above_the_verdict() -> None:
    warnings = ("2 rows hold a rendered template already " + "x " * 40,)
    plan = run_plan(data=msgspec.structs.replace(data_facts(), warnings=warnings))
    lines = plan_text(plan).splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("WARNING  2 rows hold"))
    assert lines[at + 1].startswith("         x")
    assert at < next(number for number, line in enumerate(lines) if line.startswith("FITS"))
