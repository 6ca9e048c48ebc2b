import re
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_core.execution.rungs import RUNGS
from qlora_profiles.aliases import ROWS
from qlora_profiles.errors import UserError
from qlora_profiles.registry import flag, settings
from qlora_run.cli.commands import COMMANDS, OPTIONS
from qlora_run.cli.docs import PAGES, main
from qlora_run.cli.help import explain

DOCS = Path(__file__).parents[3] / "docs"
TOPICS = [
    None,
    "SETTINGS",
    *COMMANDS,
    *settings(),
    *sorted({setting.doc.group for setting in settings().values()}),
    *sorted({row.name for row in ROWS}),
    *sorted({option.name for option in OPTIONS}),
]


@pytest.mark.parametrize("topic", TOPICS)
def test_help_is_ascii_and_fits_80_columns(topic: str | None) -> None:
    text = explain(topic)
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 80


def test_the_first_screen_fits_and_names_what_there_is() -> None:
    text = explain(None)
    assert len(text.splitlines()) <= 30
    for command in COMMANDS.keys() - {"train", "version"}:
        assert f"qlora-run {command}" in text


def test_all_settings_are_listed_once_with_their_default() -> None:
    text = explain("settings")
    for setting in settings().values():
        assert len(re.findall(rf"^  {flag(setting)}(?: |$)", text, re.MULTILINE)) == 1
    assert "examples in one optimizer step" in text
    assert "[worked out]" in text


def test_a_name_is_explained_with_its_other_names() -> None:
    text = explain("--lora-r")
    assert "rank of the adapter" in text
    assert "default: 16" in text
    assert "lora_rank" in text


def test_a_foreign_name_is_explained_by_what_it_means() -> None:
    assert "epochs" in explain("num_train_epochs")
    assert "false: layers_recomputed 0" in explain("gradient_checkpointing")
    assert "no padding exists here" in explain("group_by_length")


def test_a_group_and_a_setting_of_one_name_are_both_told() -> None:
    text = explain("output")
    assert "folder of the run" in text
    assert "--save-steps" in text


def test_a_command_lists_its_options() -> None:
    text = explain("chat")
    assert "--max-new-tokens" in text
    assert "--lora-r" not in text


def test_an_unknown_topic_names_the_nearest() -> None:
    with pytest.raises(UserError, match="no help on epohcs; did you mean epochs"):
        explain("epohcs")


@pytest.mark.parametrize("name", PAGES)
def test_the_reference_pages_are_current(name: str) -> None:
    """Rewrite them with ``python -m qlora_run.cli.docs``."""
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name]()


def test_the_reference_pages_hold_every_name(tmp_path: Path) -> None:
    main([str(tmp_path / "new")])
    page = (tmp_path / "new" / "settings.md").read_text(encoding="utf-8")
    other = (tmp_path / "new" / "compatibility.md").read_text(encoding="utf-8")
    assert [s for s in settings().values() if f"`{flag(s)}`" not in page] == []
    assert [row.name for row in ROWS if f"`{row.name}`" not in other] == []


def test_the_reference_tells_what_may_change_in_mid_run_in_the_order_of_the_table() -> None:
    part = PAGES["settings.md"]().split("## What may change in mid-run")[1].split("## ")[0]
    assert re.findall(r"`--([a-z-]+)`", part) == [rung.name.replace("_", "-") for rung in RUNGS]


def test_the_command_line_loads_nothing_heavy() -> None:
    code = (
        "import sys; from qlora_run.cli.parser import parse_command; from qlora_run.cli.help import explain;"
        "explain(parse_command(['--help']).options['topic']);"
        "print(sorted({'torch', 'transformers', 'rich', 'yaml', 'psutil', 'numpy'} & set(sys.modules)))"
    )
    paths = [str(Path(__file__).parents[3] / name) for name in ("launcher", "core", "profiles")]
    code = f"import sys; sys.path[:0] = {paths!r}; {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
