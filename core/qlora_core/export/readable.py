"""Loading what lies in a folder: whatever a library says of damaged files there is one line about the folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qlora_core.data import ChatTokenizer
from qlora_profiles.errors import EnvironmentProblem, QloraRunError, UserError, first_line
from qlora_profiles.machine_errors import problem_of

NETWORK = ("httpx", "requests", "urllib3", "huggingface_hub")
ANOTHER_COPY = "a copy of the folder, or the run that wrote it once more"


def saved_chat(folder: Path, **how: Any) -> ChatTokenizer:
    """The tokenizer and template beside something trained; ``how`` as ``ChatTokenizer.from_folder``.

    Raises:
        UserError: one of them is damaged.
    """
    try:
        with readable(folder):
            return ChatTokenizer.from_folder(folder, **how)
    except UserError as error:
        where = "" if str(folder) in error.message else f"{folder}: "
        raise UserError(f"{where}{error.message}", ANOTHER_COPY) from error


@contextmanager
def readable(folder: str | Path) -> Iterator[None]:
    """While ``folder`` is loaded.

    Raises:
        UserError: what lies there is damaged.
        EnvironmentProblem: not the files are at fault but this machine: memory, packages, the card, the network.
    """
    try:
        yield
    except QloraRunError:
        raise
    except Exception as error:
        problem = problem_of(error)
        if isinstance(problem, EnvironmentProblem) and not isinstance(error, OSError):
            raise problem from error
        said = f"{type(error).__name__}: {first_line(error)[:160]}"
        if _is_the_machines(error):
            raise EnvironmentProblem(f"{folder}: cannot be loaded ({said})", "qlora-run doctor") from error
        raise UserError(f"{folder}: cannot be loaded, its files are damaged ({said})", ANOTHER_COPY) from error


def _is_the_machines(error: Exception) -> bool:
    """Whether the network or the card failed, which say it in errors of their own."""
    return type(error).__module__.partition(".")[0] in NETWORK or "CUDA error" in str(error)
