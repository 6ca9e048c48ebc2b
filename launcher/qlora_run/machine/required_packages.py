"""The packages without which the core cannot start."""

from importlib.util import find_spec

from qlora_profiles.errors import EnvironmentProblem

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
