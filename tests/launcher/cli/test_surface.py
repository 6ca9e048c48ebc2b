"""The command line as people's scripts rely on it. A change here is a change for them; then rewrite the file:
``PYTHONPATH=launcher:core:profiles python tests/launcher/cli/test_surface.py``.
"""

from pathlib import Path

from qlora_run.cli.commands import COMMANDS
from qlora_run.cli.names import options_taken, short_forms

SNAPSHOT = Path(__file__).with_name("command_line.txt")


def surface() -> str:
    """One line for each option: how it is written, whether it takes a value, and the commands that know it."""
    found: dict[str, list[str]] = {}
    for name, spec in COMMANDS.items():
        for option, takes in options_taken(spec).items():
            short = short_forms(spec).get(option, "")
            found.setdefault(f"--{option} {short} {takes}".replace("  ", " "), []).append(name)
    return "\n".join(sorted(f"{option}: {' '.join(commands)}" for option, commands in found.items())) + "\n"


def test_the_command_line_is_what_it_was() -> None:
    assert surface().splitlines() == SNAPSHOT.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    SNAPSHOT.write_text(surface(), encoding="utf-8", newline="\n")
