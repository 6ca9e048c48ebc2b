"""The packages without which the core cannot start."""

from importlib.util import find_spec

from qlora_profiles.errors import EnvironmentProblem

TRAINING = ("torch", "transformers", "peft", "accelerate", "datasets")
TALKING = ("torch", "transformers", "peft")


def check_installed(*names: str) -> None:
    """Raises: EnvironmentProblem naming those of the packages that are not installed; nothing is imported."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise EnvironmentProblem(f"not installed: {', '.join(missing)}", "qlora-run doctor tells how to install them")
