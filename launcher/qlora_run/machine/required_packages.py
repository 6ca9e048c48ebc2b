"""The packages without which the core cannot start, and what a tracker needs."""

import netrc
import os
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec

from qlora_profiles.errors import EnvironmentProblem, UserError
from qlora_profiles.suggest import hint

TRAINING = ("torch", "transformers", "peft", "accelerate", "datasets")
INFERENCE = ("torch", "transformers", "peft")


def check_installed(*names: str) -> None:
    """Look for packages without importing them.

    Raises:
        EnvironmentProblem: some are not installed; names them.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise EnvironmentProblem(f"not installed: {', '.join(missing)}", "qlora-run doctor tells how to install them")


TRACKERS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "comet_ml": ("comet_ml",),
    "clearml": ("clearml",),
    "neptune": ("neptune",),
    "dvclive": ("dvclive",),
    "swanlab": ("swanlab",),
    "trackio": ("trackio",),
    "codecarbon": ("codecarbon",),
    "dagshub": ("dagshub",),
    "azure_ml": ("azureml",),
    "flyte": ("flytekit",),
}
"""Trackers that transformers knows -> packages, of which each needs one."""
WANDB_OFF = ("offline", "disabled", "dryrun")


def check_trackers(names: Sequence[str]) -> None:
    """Before anything is loaded for them.

    Raises:
        UserError: no such tracker, or one that asks for a key that nobody gave.
        EnvironmentProblem: its package is not installed.
    """
    for name in names:
        if name in ("none", "all"):
            continue
        if name not in TRACKERS:
            known = ", ".join(TRACKERS)
            raise UserError(f"--report-to {name}: no such tracker{hint(name, TRACKERS)}", f"one of {known}")
        if not any(find_spec(package) for package in TRACKERS[name]):
            raise EnvironmentProblem(
                f"--report-to {name}: {TRACKERS[name][0]} is not installed", f"pip install {TRACKERS[name][0]}"
            )
        if name == "wandb" and not _has_wandb_key():
            raise UserError("--report-to wandb: no key for it on this machine", "wandb login, or WANDB_MODE=offline")


def _has_wandb_key() -> bool:
    """Whether it would start without asking on a terminal; the key itself is nobody's business."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE", "").lower() in WANDB_OFF:
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("//")[2].partition(":")[0]
    with suppress(OSError, netrc.NetrcParseError, RuntimeError):
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    return False
