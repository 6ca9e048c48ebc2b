"""What the doctor looks at beyond the probe's report: this Python, its folders, and the way to the hub."""

import locale
import os
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from qlora_run.doctor.network import Hub, look
from qlora_run.doctor.requirements import unmet
from qlora_run.probe.sources import load_winreg
from qlora_run.probe.system import hub_cache

T = TypeVar("T")

CLOCK_SLACK_SECONDS = 26 * 3600
"""Files carry local times of other zones now and then: a clock is wrong from a day on."""
_FILE_SYSTEM_KEY = r"SYSTEM\CurrentControlSet\Control\FileSystem"


class Environment(Struct, frozen=True, kw_only=True):
    """What lies beside the hardware: ``None`` is "not looked at", and a ``..._problem`` is ``""`` where there is none.

    ``unmet`` and ``unsloth_unmet`` are requirements that what is installed does not meet, in words.
    ``clock_behind_seconds`` is how much newer than now this program's own files are.
    ``torch_folders`` are the folders on Python's path that hold a torch, the one that is imported first, and
    ``python_path`` those that ``PYTHONPATH`` names.
    """

    looked: bool = False
    virtual: bool | None = None
    bits: int | None = None
    unmet: tuple[str, ...] | None = None
    unsloth_unmet: tuple[str, ...] | None = None
    file_encoding: str | None = None
    text_encoding: str | None = None
    clock_behind_seconds: float | None = None
    long_paths: bool | None = None
    longest_path: int | None = None
    commit_free_bytes: int | None = None
    torch_folders: tuple[str, ...] = ()
    python_path: tuple[str, ...] = ()
    cache_problem: str | None = None
    output_problem: str | None = None
    symlink_problem: str | None = None
    hub: Hub | None = None
    token: bool | None = None


@dataclass(frozen=True, kw_only=True)
class EnvironmentSources:
    """Where the environment is read from, so that a test can stand another machine in."""

    env: Mapping[str, str]
    symlink: Callable[[str, str], None] = os.symlink
    winreg: Callable[[], Any] = load_winreg
    windows: bool = sys.platform == "win32"


def read_environment(output: Path | None = None, cache: Path | None = None, *, ask_hub: bool = True) -> Environment:
    """That of this process; never raises: what cannot be found out stays ``None``."""
    return gather(EnvironmentSources(env=os.environ), output or Path(), cache, ask_hub)


def gather(sources: EnvironmentSources, output: Path, cache: Path | None, ask_hub: bool) -> Environment:
    """What ``sources`` tell."""
    folder = cache or _or_none(lambda: hub_cache(sources.env))
    cache_problem = write_problem(folder) if folder else "there is no home folder to put it in"
    return Environment(
        looked=True,
        virtual=sys.prefix != sys.base_prefix,
        bits=struct.calcsize("P") * 8,
        unmet=_or_none(lambda: unmet("qlora-run")),
        unsloth_unmet=_or_none(lambda: unmet("unsloth")),
        file_encoding=sys.getfilesystemencoding(),
        text_encoding=locale.getpreferredencoding(False),
        clock_behind_seconds=_or_none(_clock_behind_seconds),
        long_paths=_or_none(lambda: _long_paths(sources.winreg())) if sources.windows else None,
        longest_path=len(str(output.expanduser().absolute())),
        commit_free_bytes=_or_none(commit_free_bytes) if sources.windows else None,
        torch_folders=_or_none(lambda: torch_folders(sys.path)) or (),
        python_path=tuple(str(Path(place).absolute()) for place in _python_path(sources.env)),
        cache_problem=cache_problem,
        output_problem=write_problem(output),
        symlink_problem=None if cache_problem else symlink_problem(folder or Path(), sources.symlink),
        hub=_or_none(look) if ask_hub else None,
        token=_or_none(_has_token),
    )


def _or_none(reader: Callable[[], T]) -> T | None:
    """What cannot be found out is not known; a doctor does not fall ill of it."""
    try:
        return reader()
    except Exception:  # registries, metadata and half-set homes raise anything
        return None


def _clock_behind_seconds() -> float:
    own = Path(__file__).stat().st_mtime
    return max(0.0, own - time.time() - CLOCK_SLACK_SECONDS)


def _long_paths(winreg: Any) -> bool:
    with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, _FILE_SYSTEM_KEY) as key:
        return bool(winreg.QueryValueEx(key, "LongPathsEnabled")[0])


def commit_free_bytes() -> int:
    """What Windows would still promise to this process: main memory and page file together. Raises elsewhere."""
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in ("ram", "ram_free", "commit", "commit_free", "v", "vf", "x")),
        )

    status = Status()
    status.length = ctypes.sizeof(status)
    if not vars(ctypes)["windll"].kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise OSError("GlobalMemoryStatusEx")
    return int(status.commit_free)


def torch_folders(path: Iterable[str]) -> tuple[str, ...]:
    """The folders of Python's path in which a torch lies: of several the first one hides the others."""
    folders: dict[Path, str] = {}
    for place in path:
        if Path(place, "torch", "version.py").is_file():
            folders.setdefault(Path(place).resolve(), str(Path(place).absolute()))
    return tuple(folders.values())


def _python_path(env: Mapping[str, str]) -> list[str]:
    return [place for place in env.get("PYTHONPATH", "").split(os.pathsep) if place]


def write_problem(folder: Path) -> str:
    """Why nothing can be written to a folder, or to the nearest one above it that exists; ``""`` where it can."""
    place = nearest(folder)
    if place.is_file():
        return f"{place}: a file, not a folder"
    try:
        with tempfile.TemporaryFile(dir=place, buffering=0) as file:
            file.write(bytes(4096))  # a full disk takes the file, but nothing in it
            return ""
    except OSError as error:
        return f"{place}: {error.strerror or error}"


def symlink_problem(folder: Path, symlink: Callable[[str, str], None]) -> str:
    """Why links cannot be made beside the hub's cache; Windows refuses them without developer mode (WinError 1314)."""
    try:
        with tempfile.TemporaryDirectory(dir=nearest(folder)) as place:
            target = Path(place) / "file"
            target.write_text("x", encoding="utf-8")
            symlink(str(target), str(Path(place) / "link"))
    except (OSError, NotImplementedError) as error:
        code = getattr(error, "winerror", None)
        return f"WinError {code}" if code else str(getattr(error, "strerror", None) or error)
    return ""


def nearest(folder: Path) -> Path:
    """The folder, or the first place above it that exists as far as may be seen; a file in the way is one."""
    whole = folder.expanduser().absolute()
    return next(place for place in (whole, *whole.parents) if _is_there(place) or place == place.parent)


def _is_there(place: Path) -> bool:
    try:
        return place.exists()
    except OSError:  # below a folder that may not be looked into
        return False


def _has_token() -> bool:
    from huggingface_hub import get_token

    return bool(get_token())
