"""What is not used, and what does its work instead, in one line of one form."""

from collections.abc import Callable

from qlora_profiles.errors import first_line

Warn = Callable[[str], None]
MOST_REASON_CHARACTERS = 160
"""Characters of a reason: compilers say much."""


class Unsuited(Exception):
    """A kernel is not made for what it is asked for; the message says why."""


DISAGREES = (Unsuited, ArithmeticError)
"""What says that a kernel computes something else; any other error says that something does not run."""


def failure(kernel: str, why: BaseException | str, instead: str) -> str:
    """The line that says which kernel is not used, why not, and who computes in its place."""
    return f"kernel for {kernel}: {why if isinstance(why, str) else _reason(why)}; {instead} does it instead"


def _reason(error: BaseException) -> str:
    said = first_line(error)
    if not isinstance(error, (*DISAGREES, ImportError)) and said != type(error).__name__:
        said = f"{type(error).__name__}: {said}"
    return said[:MOST_REASON_CHARACTERS]
