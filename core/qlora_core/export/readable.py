"""Loading what lies in a folder: whatever a library says of damaged files there is one line about the folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qlora_profiles.errors import EnvironmentProblem, QloraRunError, UserError, first_line
from qlora_profiles.machine_errors import problem_of


@contextmanager
def readable(folder: str | Path) -> Iterator[None]:
    """While ``folder`` is loaded.

    Raises:
        UserError: what lies there is damaged.
        EnvironmentProblem: not the files are at fault but this machine: memory, packages.
    """
    try:
        yield
    except QloraRunError:
        raise
    except Exception as error:
        problem = problem_of(error)
        if isinstance(problem, EnvironmentProblem) and not isinstance(error, OSError):
            raise problem from error
        name = type(error).__name__
        said = f"{folder}: cannot be loaded, its files are damaged ({name}: {first_line(error)[:160]})"
        raise UserError(said, "a copy of the folder, or the run that wrote it once more") from error
