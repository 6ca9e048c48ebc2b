"""The one exception tree, and what each branch means for the exit code.

::

    QloraRunError
    |-- UserError              exit 2: a person's mistake; one line, no traceback
    |-- EnvironmentProblem     exit 3: the machine cannot do it; points to ``doctor``
    `-- Interrupted            exit 130: stopped on request, checkpoint written first

Anything else that escapes is a fault of ours: one line, its traceback in a file, exit 3
(:mod:`qlora_profiles.machine_errors`).
"""

from qlora_profiles.visible import visible

EXIT_OK = 0
EXIT_USER = 2
EXIT_ENVIRONMENT = 3
EXIT_INTERRUPTED = 130


class QloraRunError(Exception):
    """An error that is told to a person in one line: what is wrong, and ``fix``: the way on.

    ``fix`` is a command or a setting, never prose about the program's insides. Both quote what people and files say, so
    control characters in them are spelled out.
    """

    exit_code = EXIT_ENVIRONMENT

    def __init__(self, message: str, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = visible(message)
        self.fix = visible(fix) if fix else fix

    def __str__(self) -> str:
        return f"{self.message}  -> {self.fix}" if self.fix else self.message


class UserError(QloraRunError):
    """A person's mistake: a file, a value, a name."""

    exit_code = EXIT_USER


class EnvironmentProblem(QloraRunError):
    """The machine or its software cannot do what the plan needs."""

    exit_code = EXIT_ENVIRONMENT


class Interrupted(QloraRunError):
    """A person asked the run to stop; what was trained is saved."""

    exit_code = EXIT_INTERRUPTED


def first_line(error: BaseException) -> str:
    """What an error says in its first line; its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
