"""The entry point: words in, exit code out, every foreseen error one line."""

import os
import sys

from qlora_profiles.errors import (
    EXIT_ENVIRONMENT,
    EXIT_INTERRUPTED,
    EnvironmentProblem,
    QloraRunError,
    UserError,
    first_line,
)
from qlora_run.machine.bytecode_cache import keep_compiled

OWN_PACKAGES = ("qlora_run", "qlora_core", "qlora_profiles")
INSTALL = "install it again with all that it needs: pip install -c constraints.txt .  (in its own folder)"


def main(argv: list[str] | None = None) -> int:
    """Run one command line (without the program's name); returns the exit code of ``qlora_profiles.errors``.

    Never raises for what a person or the machine can be the cause of: that becomes a line and an exit code.
    """
    if argv is None:
        _ensure_utf8()
        keep_compiled()
        argv = sys.argv[1:]
    try:
        from qlora_core.session.streams import lasting_streams

        with lasting_streams():
            return _run(argv)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in OWN_PACKAGES:
            raise
        print(f"{error.name} is not installed, which qlora-run needs  -> {INSTALL}", file=sys.stderr)
        return EXIT_ENVIRONMENT


def _run(argv: list[str]) -> int:
    from qlora_run.terminal.console import print_error

    try:
        return _dispatch(argv)
    except QloraRunError as error:
        print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return EXIT_INTERRUPTED


def _dispatch(argv: list[str]) -> int:
    """Parse and run. Raises QloraRunError for everything that a person or the machine can be the cause of."""
    from qlora_run.cli.parser import parse_command
    from qlora_run.commands import handler

    for word in argv:
        if not word.isascii() and any("\ud800" <= letter <= "\udfff" for letter in word):
            raise UserError(f"{word}: not in this system's encoding ({sys.getfilesystemencoding()})", "another name")
    command = parse_command(argv)
    try:
        return handler(command)(command)
    except RuntimeError as error:  # what pathlib says of ~somebody whom this machine does not know
        if "home directory" not in str(error):
            raise
        raise UserError(f"a path that begins with ~: {first_line(error)}", "the whole path") from error
    except OSError as error:
        if error.filename is None:
            raise
        raise EnvironmentProblem(f"{error.filename}: {error.strerror}", "another place or name") from error


def _ensure_utf8() -> None:
    """Start over in UTF-8 mode where the locale knows only ASCII: no Chinese file name can be told there."""
    if sys.getfilesystemencoding() != "ascii" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1"})


if __name__ == "__main__":
    sys.exit(main())
