"""Installed packages and torch's build, read from files: nothing here is imported."""

import ast
import re
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from qlora_profiles.hardware import Torch, TorchBuild
from qlora_run.probe.notes import Notes, Unknowable
from qlora_run.probe.sources import Sources

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "tokenizers",
    "unsloth",
    "unsloth_zoo",
    "triton",
    "triton-windows",
    "liger-kernel",
    "flash-attn",
    "xformers",
    "trl",
    "tensorboard",
    "wandb",
)


@dataclass(frozen=True)
class Build:
    """What torch computes on; ``cuda`` is the toolkit it was built with, as ``"13.0"``."""

    kind: TorchBuild
    cuda: str | None = None


def packages(notes: Notes) -> dict[str, str]:
    """Versions of the packages that matter, by distribution name; absent ones are left out."""
    found = ((name, notes.ask(partial(_version, name), f"packages.{name}")) for name in PACKAGES)
    return {name: version for name, version in found if version}


def _version(name: str) -> str | None:
    try:
        version: str | None = metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
    if not version:
        raise Unknowable(f"{name}: its metadata has no version; reinstall it")
    return version


def torch(sources: Sources, notes: Notes, installed: str | None) -> Torch:
    """The installed torch; ``installed`` is its version by metadata.

    The version's local part (``+cu130``) tells the build; without one, torch's own ``version.py`` does.
    """
    build = build_from_version(installed) if installed else None
    if build and installed:
        return Torch(version=installed, build=build.kind, cuda=build.cuda)
    values = notes.ask(_version_file, "torch.build", "torch.cuda") or {}
    version = installed or values.get("__version__")
    if version is None:
        notes.add("torch.version", "torch is not installed")
    build = build_from_values(values, on_apple=_is_apple(sources, notes)) if values else None
    return Torch(version=version, build=build.kind if build else None, cuda=build.cuda if build else None)


def build_from_version(version: str) -> Build | None:
    """The build from a version's local part (``+cpu``, ``+cu130``, ``+rocm6.4``, ``+xpu``), or ``None``."""
    _, _, local = version.partition("+")
    cuda = re.match(r"cu(\d+)(\d)(?!\d)", local)
    if cuda:
        return Build("cuda", f"{cuda[1]}.{cuda[2]}")
    kinds: dict[str, TorchBuild] = {"cpu": "cpu", "rocm": "rocm", "xpu": "xpu"}
    return next((Build(kind) for prefix, kind in kinds.items() if local.startswith(prefix)), None)


def parse_version_file(text: str) -> dict[str, str | None]:
    """The string and ``None`` constants that torch's ``version.py`` assigns. Raises SyntaxError."""
    values: dict[str, str | None] = {}
    for line in ast.parse(text).body:
        target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
        value = getattr(line, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str | None):
            values[target.id] = value.value
    return values


def build_from_values(values: dict[str, str | None], on_apple: bool) -> Build:
    """The build from the constants of ``version.py``; a plain build on Apple silicon computes on its graphics."""
    if cuda := values.get("cuda"):
        return Build("cuda", cuda)
    if values.get("hip") or values.get("rocm"):
        return Build("rocm")
    if values.get("xpu"):
        return Build("xpu")
    return Build("mps" if on_apple else "cpu")


def _version_file() -> dict[str, str | None]:
    """The constants of the ``version.py`` of the torch that would be imported; finding it does not run it."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise Unknowable("torch is not installed")
    return parse_version_file((Path(spec.origin).parent / "version.py").read_text(encoding="utf-8"))


def _is_apple(sources: Sources, notes: Notes) -> bool:
    return sources.system == "macos" and notes.ask(lambda: sources.machine(sources.env)) == "arm64"
