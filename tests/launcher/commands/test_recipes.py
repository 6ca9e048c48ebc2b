"""``recipes`` and ``--recipe`` as people use them: listed, shown, planned, combined, changed, saved, trained."""

import json
import shlex
import shutil
from pathlib import Path

import msgspec
import pytest
from support.command_line import planned, process, refused, said
from support.models import save_tiny_model, write_rows

from qlora_profiles import codec
from qlora_profiles.machines import load_machine
from qlora_profiles.plan import RunPlan, plain
from qlora_profiles.recipe_file import NamedRecipe
from qlora_profiles.recipes import load_recipe, recipe_names
from qlora_run.cli.parser import parse_command
from qlora_run.planner import make_plan
from qlora_run.report.commands import start_command

Caught = pytest.CaptureFixture[str]
BELLE = ("--recipe", "gemma3-4b-belle")
TINY = ("--model", "tiny", "--data", "rows.jsonl", "--output", "out")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", "gemma3_text")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QLORA_RUN_CONFIG", str(tmp_path / "settings"))
    monkeypatch.setenv("QLORA_RUN_CACHE", str(tmp_path / "cache"))
    work = tmp_path / "work"
    work.mkdir()
    shutil.copytree(model, work / "tiny")
    write_rows(work / "rows.jsonl")
    monkeypatch.chdir(work)
    monkeypatch.setattr(make_plan, "probe", lambda output, cache: load_machine("cpu-only"))
    return work


def plan_of(capsys: Caught, *words: str) -> RunPlan:
    return codec.from_json(said(capsys, "plan", *words, "--json"), RunPlan, "out")


def test_recipes_are_listed_with_what_they_are(capsys: Caught) -> None:
    text = said(capsys, "recipes")
    assert text == said(capsys, "recipes", "list")
    for name in recipe_names():
        recipe = load_recipe(name)
        assert f"{name}\n  {recipe.about}\n  {recipe.about_zh}\n" in text
    assert "qlora-run --recipe NAME" in text
    listed = msgspec.json.decode(said(capsys, "recipes", "--json"), type=list[NamedRecipe], strict=False)
    assert [recipe.name for recipe in listed] == list(recipe_names())


@pytest.mark.parametrize(("console", "chinese"), [("gbk", True), ("ascii", False)])
def test_a_console_without_chinese_is_spared_it(console: str, chinese: bool, here: Path) -> None:
    done = process("recipes", cwd=here, env={"PYTHONIOENCODING": console})
    assert done.returncode == 0
    text = done.stdout.decode(console)
    assert ("随机采样" in text) == chinese
    assert "?" not in text


def test_a_recipe_is_shown_as_its_file_stands(capsys: Caught) -> None:
    text = said(capsys, "recipes", "show", "gemma3-4b-belle")
    assert "  data: BelleGroup/train_0.5M_CN\n" in text
    assert "  # A constant rate does not warm up; said there all the same.\n" in text
    assert "prompt_form: " in text
    assert text.endswith("Next: qlora-run --recipe gemma3-4b-belle\n")
    shown = json.loads(said(capsys, "recipes", "show", "gemma3-4b-belle", "--json"))
    assert (shown["settings"]["max_samples"], shown["execution"]["optimizer_kernel"]) == (2000, "paged")


def test_what_is_unknown_is_told_in_one_line(here: Path, capsys: Caught) -> None:
    assert "did you mean gemma3-4b-belle?" in refused(capsys, "--recipe", "gemma-4b-belle")
    assert "did you mean gemma3-4b-belle?" in refused(capsys, "recipes", "show", "gemma-4b-belle")
    assert "-> --profile windows-12gb" in refused(capsys, "--recipe", "windows-12gb")
    assert "-> --recipe gemma3-4b-belle" in refused(capsys, "--profile", "gemma3-4b-belle")
    assert "recipes show NAME" in refused(capsys, "recipes", "keep", "mine")
    assert "it belongs to qlora-run train" in refused(capsys, "demo", *BELLE)
    folder = here.parent / "settings" / "recipes"
    folder.mkdir(parents=True)
    (folder / "bad.yaml").write_text("about: x\nsettings: {lora_ra: 8}\n", encoding="utf-8")
    assert "recipe bad: unknown setting lora_ra; did you mean" in refused(capsys, "--recipe", "bad")
    assert "recipe bad: unknown setting lora_ra" in said(capsys, "recipes")


def test_data_that_is_not_here_is_told_with_its_recipe(capsys: Caught) -> None:
    told = refused(capsys, "--recipe", "qwen3-8b-qlora", "--model", "tiny", "--output", "out")
    assert told.startswith("recipe qwen3-8b-qlora: --data training_data.jsonl")
    assert "-> --data FILE" in told


@pytest.mark.parametrize(
    ("name", "machine"),
    [
        *((name, "linux-24gb") for name in recipe_names()),
        ("gemma3-4b-belle", "linux-12gb"),
        ("qwen3-4b-lora", "windows-16gb"),
        ("qwen2.5-7b-novel", "linux-8gb"),
    ],
)
def test_every_recipe_is_planned_before_its_data_is_here(name: str, machine: str, capsys: Caught) -> None:
    """On a usual card, and on the smallest that its source names."""
    plan, recipe = plan_of(capsys, "--recipe", name, "--as", machine), load_recipe(name)
    assert plan.memory.fits or (machine == "linux-8gb" and plan.memory.close)  # rows of 2,048 tokens are a lot there
    assert plan.recipe_name == name
    every = {**plan.recipe, **plan.execution, **plan.run}
    for setting, value in recipe.settings.items():
        if setting in every:
            assert (every[setting].source, every[setting].value) == ("recipe", plain(value)), setting
    batch = recipe.settings.get("per_device_train_batch_size", recipe.settings.get("batch_size", 1))
    assert plan.recipe_values().examples_per_step == batch * recipe.settings.get("gradient_accumulation_steps", 16)
    assert plan.data.rows == (recipe.settings.get("max_samples") or 1000)
    assert any(f"{recipe.settings['data'][0]} is not on this disk" in note for note in plan.data.notes)
    assert not {r.source for r in plan.execution.values()} & {"recipe", "config", "cli"}


def test_the_plan_says_what_is_from_the_recipe(capsys: Caught) -> None:
    text = said(capsys, "plan", *BELLE, "--as", "windows-12gb", "--profile", "windows-12gb", "--lora-r", "8")
    head = " ".join(text.splitlines()[:2])
    assert head == "gemma-3-4b-it · BelleGroup/train_0.5M_CN · recipe gemma3-4b-belle · profile windows-12gb"
    rows = {words[0]: words[-1] for line in text.splitlines() if len(words := line.split()) > 2}
    assert (rows["lora-alpha"], rows["max-length"], rows["lora-r"]) == ("recipe", "profile", "cli")
    run = next(line for line in text.splitlines() if line.startswith("Run: "))
    assert run == "Run: qlora-run --auto --recipe gemma3-4b-belle --profile windows-12gb --lora-r 8"


def test_a_recipe_decides_what_a_profile_says_too(capsys: Caught) -> None:
    plan = plan_of(capsys, *BELLE, "--profile", "windows-12gb", "--as", "windows-12gb")
    by = {name: r.source for name, r in {**plan.recipe, **plan.execution}.items()}
    assert plan.model.source == "google/gemma-3-4b-it"  # the profile names another one
    assert (by["model"], by["method"], by["lora_r"]) == ("recipe", "recipe", "recipe")
    assert (by["max_length"], by["workers"], by["optimizer_kernel"]) == ("profile", "profile", "profile")
    assert plan.profile == "windows-12gb"


def test_later_ones_win_over_a_recipe(here: Path, capsys: Caught) -> None:
    (here / "run.yaml").write_text("recipe: gemma3-4b-belle\nlora_r: 4\nepochs: 2\n", encoding="utf-8")
    plan = planned(capsys, "--config", "run.yaml", *TINY, "--epochs", "1")
    found = {name: (plan.recipe[name].value, plan.recipe[name].source) for name in ("lora_r", "epochs", "lora_alpha")}
    assert found == {"lora_r": (4, "config"), "epochs": (1.0, "cli"), "lora_alpha": (32.0, "recipe")}
    (here / "section.yaml").write_text("recipe:\n  lora_r: 4\n", encoding="utf-8")
    assert planned(capsys, "--config", "section.yaml", *TINY).recipe["lora_r"].source == "config"


def test_one_part_of_a_step_may_be_changed_alone(capsys: Caught) -> None:
    of_recipe = planned(capsys, *BELLE, *TINY).recipe["examples_per_step"]
    assert (of_recipe.value, of_recipe.reason) == (4, "the recipe's batch 1 x accumulation 4")
    assert planned(capsys, *BELLE, *TINY, "--batch_size", "2").recipe_values().examples_per_step == 8
    assert planned(capsys, *BELLE, *TINY, "--examples-per-step", "3").recipe_values().examples_per_step == 3


def test_what_a_recipe_says_of_its_own_model_and_data_is_of_no_other(capsys: Caught) -> None:
    plan = planned(capsys, *BELLE, *TINY)
    assert plan.recipe_values().max_samples is None
    assert "max_samples 2000 of recipe gemma3-4b-belle is for its own data, and set aside" in plan.notes
    plan = planned(capsys, "--recipe", "qwen3-8b-qlora", *TINY, "--max-samples", "5", "--max-length", "256")
    assert plan.run_values().local_dir is None
    assert plan.recipe_values().max_samples == 5
    assert not any("max_samples" in note for note in plan.notes)


def test_the_printed_command_makes_the_same_recipe(capsys: Caught) -> None:
    plan = planned(capsys, *BELLE, *TINY, "--lora-dropout", "0.2")
    command = start_command(plan)
    assert command.startswith("qlora-run --auto --recipe gemma3-4b-belle --model tiny --data rows.jsonl ")
    again = planned(capsys, *shlex.split(command)[1:])
    assert again.recipe_digest() == plan.recipe_digest()
    assert parse_command(shlex.split(command)[1:]).options["recipe"] == "gemma3-4b-belle"


def test_a_run_of_a_recipe_is_saved_as_a_recipe(here: Path, capsys: Caught) -> None:
    plan = planned(capsys, *BELLE, *TINY, "--lora-r", "8", "--workers", "0", "--merge", "--save-steps", "7")
    (here / "out").mkdir()
    codec.save(plan, here / "out" / "plan.json")
    assert "recipes save mine --from" in refused(capsys, "recipes", "save", "mine")
    text = said(capsys, "recipes", "save", "mine", "--from", "out")
    assert text.endswith("Next: qlora-run --recipe mine\n")
    kept = load_recipe("mine").settings
    assert (kept["lora_r"], kept["merge"], kept["save_steps"]) == (8, True, 7)
    assert not {"workers", "output", "resume"} & kept.keys()
    assert "yours, in " in said(capsys, "recipes")
    again = planned(capsys, "--recipe", "mine", "--output", "other")
    assert again.recipe_digest() == plan.recipe_digest()
    replayed = codec.from_json(said(capsys, "replay", "out", "--dry-run", "--json"), RunPlan, "out")
    assert replayed.recipe_digest() == plan.recipe_digest()
    assert (replayed.recipe["lora_alpha"].source, replayed.recipe_name) == ("config", None)
    assert "--yes replaces it" in refused(capsys, "recipes", "save", "mine", "--from", "out")


def test_a_recipe_trains_a_tiny_model_with_its_values(here: Path) -> None:
    """Two real steps on the CPU; everything but model, data, output and length of the run is the recipe's."""
    done = process(*BELLE, *TINY, "--max-steps", "2", "--read-back", "false", cwd=here)
    assert done.returncode == 0, done.stderr
    adapter = json.loads((here / "out" / "lora_adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (adapter["r"], adapter["lora_alpha"], adapter["lora_dropout"]) == (16, 32, 0.1)
    assert set(adapter["target_modules"]) == set(load_recipe("gemma3-4b-belle").settings["target_modules"])
    plan = codec.load(here / "out" / "plan.json", RunPlan)
    assert (plan.recipe_name, plan.recipe_values().method) == ("gemma3-4b-belle", "qlora-4")
    events = [json.loads(line) for line in (here / "out" / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [event for event in events if event["type"] == "step"]
    assert [step["learning_rate"] for step in steps] == [2e-4, 2e-4]
    assert [step["examples"] for step in steps] == [4, 4]
    assert b"recipe gemma3-4b-belle" in done.stdout
