"""The cache of measurements: one JSON file for each machine and set of kernels in the user's cache folder.

A file that cannot be read is left out with a note, never an error. Files are replaced whole, so that processes
that write at once leave one of their versions and never half of one.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from qlora_profiles import places
from qlora_profiles.codec import from_json, keep
from qlora_profiles.errors import UserError
from qlora_profiles.hardware import HardwareReport
from qlora_profiles.settings import FIRST_CARD
from qlora_run.calibration.records import Calibration, Kernels, Machine, Record, machine_of

FOLDER = "calibration"


def cache_folder() -> Path:
    """Where measurements lie: ``QLORA_RUN_CACHE``, else the user's cache folder."""
    return places.cache_folder(FOLDER)


def load(report: HardwareReport, folder: Path | None = None, devices: Sequence[int] = FIRST_CARD) -> Calibration:
    """What was measured on this machine's card of that number, with these libraries."""
    machine = machine_of(report, devices)
    if machine is None:
        return Calibration()
    records, notes = [], []
    for path in _files(folder or cache_folder(), machine):
        try:
            record = read(path)
        except UserError as error:
            notes.append(f"measurements left out: {error.message}")
            continue
        if record.machine == machine:
            records.append(record)
    return Calibration(records=tuple(records), notes=tuple(notes))


def _files(folder: Path, machine: Machine) -> list[Path]:
    try:
        return sorted(folder.glob(f"{_digest(machine)}-*.json"))
    except OSError:
        return []


def read(path: Path) -> Record:
    """One file.

    Raises:
        UserError: unreadable, damaged, or not one of ours.
    """
    try:
        return from_json(path.read_text(encoding="utf-8"), Record, str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from error


def path_of(machine: Machine, kernels: Kernels, folder: Path | None = None) -> Path:
    """The file of a machine with a set of kernels."""
    return (folder or cache_folder()) / f"{_digest(machine)}-{_digest(kernels)}.json"


def _digest(value: msgspec.Struct) -> str:
    return hashlib.sha256(msgspec.json.encode(value)).hexdigest()[:12]


def write(record: Record, folder: Path | None = None) -> Path | None:
    """Put a record in its place; ``None`` where the cache cannot be written, which stops nobody's training."""
    return keep(record, path_of(record.machine, record.kernels, folder))
