"""Where the facts come from: the doors to the outside, in one value, so that another machine can stand behind them."""

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qlora_run.probe.notes import Unknowable

System = Literal["windows", "linux", "macos", "other"]
_SYSTEMS: dict[str, System] = {"win32": "windows", "linux": "linux", "darwin": "macos"}


def load_nvml() -> Any:
    """The NVML binding. Raises Unknowable when it is not installed."""
    try:
        return importlib.import_module("pynvml")
    except ImportError as error:
        raise Unknowable("nvidia-ml-py is not installed: pip install nvidia-ml-py") from error


def load_winreg() -> Any:
    """The registry, reached without a static import because the module exists on Windows only."""
    return importlib.import_module("winreg")


def windows_version() -> Any:
    """``sys.getwindowsversion()``; raises KeyError elsewhere.

    The ``platform`` module is avoided there: newer Pythons ask the slow management service for it.
    """
    return vars(sys)["getwindowsversion"]()


def machine(env: Mapping[str, str]) -> str:
    """The processor family: ``x86_64``, ``AMD64``, ``arm64``. Raises Unknowable: Windows' variable is not set."""
    if hasattr(os, "uname"):
        return str(os.uname().machine)
    found = env.get("PROCESSOR_ARCHITEW6432") or env.get("PROCESSOR_ARCHITECTURE")
    if not found:
        raise Unknowable("PROCESSOR_ARCHITECTURE is not set")
    return found


def sysctl(name: str) -> str:
    """A text value of macOS's ``sysctlbyname``; raises AttributeError elsewhere, OSError for an unknown name."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    size = ctypes.c_size_t(0)
    if library.sysctlbyname(name.encode(), None, ctypes.byref(size), None, ctypes.c_size_t(0)):
        raise OSError(ctypes.get_errno(), f"sysctl {name}")
    buffer = ctypes.create_string_buffer(size.value)
    if library.sysctlbyname(name.encode(), buffer, ctypes.byref(size), None, ctypes.c_size_t(0)):
        raise OSError(ctypes.get_errno(), f"sysctl {name}")
    return buffer.value.decode("utf-8", "replace")


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The machine's doors. ``root`` is the folder under which ``proc``, ``sys`` and ``etc`` lie."""

    env: Mapping[str, str] = field(default_factory=lambda: os.environ)
    system: System = field(default_factory=lambda: _SYSTEMS.get(sys.platform, "other"))
    root: Path = Path("/")
    load_nvml: Callable[[], Any] = load_nvml
    load_winreg: Callable[[], Any] = load_winreg
    windows_version: Callable[[], Any] = windows_version
    machine: Callable[[Mapping[str, str]], str] = machine
    sysctl: Callable[[str], str] = sysctl

    def text(self, path: str) -> str:
        """A small file under ``root``. Raises OSError."""
        return (self.root / path).read_text(encoding="utf-8", errors="replace")
