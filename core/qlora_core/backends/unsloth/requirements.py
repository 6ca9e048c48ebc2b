"""What Unsloth needs of a machine and of a recipe, told from names and versions: nothing is imported."""

from collections.abc import Mapping, Sequence
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from qlora_profiles.architectures import Projections, architecture_of
from qlora_profiles.hardware import HardwareReport

PINS = {
    "unsloth": ">=2026.10.9",
    "unsloth_zoo": ">=2026.10.9",
    "torch": "<2.15",
    "transformers": "<=5.17.0",
    "trl": "<=1.15.0",
    "datasets": "<5",
}
"""What Unsloth 2026.10.9 asks for, as far as another version breaks it."""

PROJECTIONS = Projections().names
"""What its kernels adapt: the layers of Llama, by their names there."""
METHODS = ("qlora-4", "lora")
LOWEST_CAPABILITY = (7, 0)


def missing(report: HardwareReport) -> str | None:
    """The first thing on a machine that keeps Unsloth from running, or ``None``."""
    cards = report.cuda_gpus
    checks = (
        (not cards, "needs an NVIDIA card and a CUDA build of torch"),
        (len(cards) > 1, "uses one card; this machine has more"),
        (any((card.capability or LOWEST_CAPABILITY) < LOWEST_CAPABILITY for card in cards), "needs capability 7.0"),
    )
    found = next((reason for failed, reason in checks if failed), None)
    return found or _missing_package(_installed(report))


def _installed(report: HardwareReport) -> dict[str, str]:
    packages = {name.lower().replace("-", "_"): version for name, version in report.packages.items()}
    return packages | ({"torch": report.torch.version} if report.torch.version else {})


def _missing_package(packages: Mapping[str, str]) -> str | None:
    for name, wanted in PINS.items():
        version = packages.get(name)
        if version is None:
            return "not installed" if name == "unsloth" else f"{name} is missing"
        if not _satisfies(version, wanted):
            return f"needs {name}{wanted}; {version} is here"
    return None if {"triton", "triton_windows"} & packages.keys() else "Triton is missing"


def _satisfies(version: str, wanted: str) -> bool:
    """Whether a version is allowed; one that cannot be read is not."""
    try:
        return SpecifierSet(wanted).contains(Version(version).public, prereleases=True)
    except InvalidVersion:
        return False


def unfit(model_type: str, settings: Mapping[str, Any], targets: Sequence[str]) -> str | None:
    """Why a model or a recipe is not for Unsloth, or ``None``.

    ``settings`` are the values known so far, by name; ``targets`` the last names of the layers that get an adapter.
    """
    others = sorted(set(targets) - {*PROJECTIONS, "all-linear"})
    checks = (
        (settings.get("device", "cuda") != "cuda", "computes on NVIDIA cards only"),
        (not architecture_of(model_type).unsloth, f"has no kernels of its own for {model_type}"),
        (settings.get("method", METHODS[0]) not in METHODS, f"is used for {' and '.join(METHODS)} only"),
        (settings.get("compute_dtype") == "float32", "computes in 16 bits only"),
        (bool(settings.get("lora_dropout")), "its kernels know no dropout"),
        (settings.get("quant_type", "nf4") != "nf4", "quantises to nf4 only"),
        (not settings.get("double_quant", True), "always quantises the scales too"),
        (bool(others), f"adapts the projections only, not {', '.join(others)}"),
    )
    return next((reason for failed, reason in checks if failed), None)
