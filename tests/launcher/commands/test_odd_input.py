"""Odd command lines and config files: exit 0, 2 or 3, a few lines, and nothing of a person's changes."""

import random
import sys
from pathlib import Path

import pytest
from support.command_line import contents
from support.models import save_tiny_model, write_rows

from qlora_profiles.machines import load_machine
from qlora_profiles.registry import settings
from qlora_run.__main__ import main
from qlora_run.planner import make_plan

MOST_LINES = 30
ODD = (
    *("", " ", "-1", "0", "1", "1e9", "1e400", "nan", "inf", "-inf", "99999999999999999999999", "0x10", "1_000", "½"),
    *(
        "auto",
        "none",
        "null",
        "true",
        "[]",
        "{}",
        "[[1]]",
        "a,b",
        ",",
        "~nouser/x",
        "~",
        ".",
        "..",
        "/",
        "\0",
        "\ud800",
    ),
    *(
        "x" * 300,
        "退款",
        "a\nb",
        "\x1b[2J",
        "$(touch x)",
        "'",
        '"',
        "CON",
        "aux.txt",
        "rows.jsonl/x",
        "loop",
        "nowhere",
    ),
)
CONFIGS = (
    *(
        "",
        "\t",
        "- a",
        "a",
        "1",
        "a: b: c",
        "{",
        "[",
        "epochs:\n\tseed: 1",
        "epochs: 1\nepochs: 2",
        "? [a]\n: b",
        "...\n---",
    ),
    *("[" * 1000, "{a: " * 1000, "- " * 1000, "&a [*a]", "epochs: &a 1\nseed: *a", "seed: *nothing", "<<: {seed: 1}"),
    *("a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]", "seed: !!binary AAAA", "seed: !!python/object:os.system x"),
    *("seed: !!int x", "run_name: 2024-99-99", "lora_r\u200b: 8", "lora_config: 1", "training:\n  lora_config: {r: 8}"),
    *("\ufeffseed: 1", "seed: 1\x00", "seed: [1, 2]", "seed: {a: 1}", "null: 1", "1: 2", "true: 3", "model: ~nouser/x"),
    *(
        "seed: 4294967296",
        "seed: 1e400",
        "%YAML 9.9\n---\nseed: 1",
        "seed: |\n 1",
        'run_name: "\\ud800"',
        "x" * 2_000_000,
    ),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("odd") / "tiny")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_rows(tmp_path / "rows.jsonl")
    if sys.platform != "win32":
        (tmp_path / "loop").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(make_plan, "probe", lambda output, cache: load_machine("cpu-only"))
    return tmp_path


def ends_well(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What it says; it ends in one of the known ways."""
    code = main(list(argv))
    out, err = capsys.readouterr()
    assert code in (0, 2, 3), argv
    assert "Traceback" not in out + err, argv
    assert "a fault of qlora-run" not in err, (argv, err)
    assert code == 0 or err.count("\n") <= MOST_LINES, argv
    return f"{code} {err}"


def test_odd_values_of_every_setting(here: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Some values for each setting, drawn anew for another seed."""
    before, draw = contents(here), random.Random(7)
    for name, setting in settings().items():
        for value in draw.sample(ODD, 2):
            words = [f"--{name.replace('_', '-')}={value}"]
            words += ["--model", str(model)] if name != "model" else []
            words += ["--data", "rows.jsonl"] if name != "data" else []
            ends_well(capsys, "--auto", *words, "--dry-run")
        assert contents(here) == before, setting.name


@pytest.mark.parametrize("text", CONFIGS, ids=range(len(CONFIGS)))
def test_odd_config_files(here: Path, model: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (here / "odd.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    before = contents(here)
    ends_well(capsys, "--config", "odd.yaml", "--model", str(model), "--data", "rows.jsonl", "--dry-run")
    assert contents(here) == before


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--seed", "4294967296"], "below 4,294,967,296"),
        (["--dataset-workers", "100000"], "at most 1,024"),
        (["--workers", "100000"], "at most 256"),
        (["--report-to", "wandbb"], "no such tracker; did you mean wandb"),
        (["--cache", "~nouser/x"], "there is no home folder ~nouser"),
        (["--run-name", "a\0b"], "a null character"),
        (["--learning-rate", "inf"], "is not allowed"),
        (["--cache", "long" * 2000], "a name of 8000 letters is too long"),
        (["--data", "loop"], "loop no such file: a link to nowhere, which is not there"),
        (["--config", "loop"], "no such file: a link to nowhere, which is not there"),
    ],
)
def test_what_only_training_used_to_refuse(
    here: Path, model: Path, capsys: pytest.CaptureFixture[str], argv: list[str], words: str
) -> None:
    if sys.platform == "win32" and "loop" in argv:
        pytest.skip("links need a right there")
    data = [] if "--data" in argv else ["--data", "rows.jsonl"]
    said = ends_well(capsys, "--auto", "--model", str(model), *data, *argv, "--dry-run")
    assert said.startswith("2 ")
    assert words in " ".join(said.split())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training:\n  lora_config: {r: 8}", "lora_config is a section of its own"),
        ("lora_r\u200b: 8", "unknown key lora_r\u200b (holds U+200B ZERO WIDTH SPACE); did you mean lora_r?"),
        ("[" * 1000, "nested over 20 levels deep"),
        ("epochs: 1\nseed: 2\nepochs: 3", "epochs is already set in line 1"),
    ],
)
def test_what_is_wrong_in_a_config_file(here: Path, capsys: pytest.CaptureFixture[str], text: str, words: str) -> None:
    (here / "odd.yaml").write_text(text, encoding="utf-8")
    assert words in " ".join(ends_well(capsys, "--config", "odd.yaml").split())
