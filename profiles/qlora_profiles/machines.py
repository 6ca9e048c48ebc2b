"""Machines to plan for without having them: shipped reports, and reports that people hand over as files."""

from importlib.resources import files
from pathlib import Path

from qlora_profiles.codec import from_json, load
from qlora_profiles.errors import UserError
from qlora_profiles.hardware import HardwareReport
from qlora_profiles.suggest import hint

_FOLDER = files("qlora_profiles") / "machines"


def machine_names() -> list[str]:
    """The shipped machines, by name."""
    return sorted(entry.name.removesuffix(".json") for entry in _FOLDER.iterdir() if entry.name.endswith(".json"))


def load_machine(name_or_path: str) -> HardwareReport:
    """A shipped machine by its name, else the report in a JSON file.

    Raises:
        UserError: neither a shipped name nor a file, or the file is no report.
    """
    if name_or_path in machine_names():
        text = (_FOLDER / f"{name_or_path}.json").read_text(encoding="utf-8")
        return from_json(text, HardwareReport, f"machine {name_or_path}")
    path = Path(name_or_path)
    if path.suffix == ".json" or path.exists():
        return load(path, HardwareReport)
    raise UserError(
        f"no machine is called {name_or_path!r}{hint(name_or_path, machine_names())}",
        fix=f"one of {', '.join(machine_names())}, or a file written by: python -m qlora_run.probe machine.json",
    )
