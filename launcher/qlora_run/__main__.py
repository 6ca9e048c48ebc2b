"""The entry point: words in, exit code out, every error one line."""

import os
import sys
from pathlib import Path

from qlora_profiles.errors import (
    EXIT_ENVIRONMENT,
    EXIT_INTERRUPTED,
    QloraRunError,
    UserError,
)
from qlora_run.machine.bytecode_cache import keep_compiled

OWN_PACKAGES = ("qlora_run", "qlora_core", "qlora_profiles")
INSTALL = "install it again with all that it needs: pip install -c constraints.txt .  (in its own folder)"

PRINTING = [[name] for name in ("plan", "data", "profiles", "recipes", "doctor", "help", "version")]
"""Commands whose work is what they print; a training is done all the same."""


def main(argv: list[str] | None = None) -> int:
    """Run one command line (without the program's name); returns the exit code of ``qlora_profiles.errors``.

    Never raises for what a person or the machine can be the cause of: that becomes a line and an exit code.
    """
    own_process = argv is None
    if argv is None:
        _ensure_utf8()
        keep_compiled()
        argv = sys.argv[1:]
    code = _main(argv, own_process)
    if own_process:
        from qlora_core.session.stop_signals import ignore_from_here

        ignore_from_here()
    return code


def _main(argv: list[str], own_process: bool) -> int:
    try:
        from qlora_core.session.stop_signals import install, interrupt
        from qlora_core.session.streams import lasting_streams

        if own_process:
            install(interrupt)
        with lasting_streams() as streams:
            code = _run(argv)
        return streams.code_after(code, output_matters=argv[:1] in PRINTING)
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
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except ModuleNotFoundError:
        raise
    except Exception as error:
        problem = _problem(error)
        print_error(problem)
        return problem.exit_code


def _problem(error: Exception) -> QloraRunError:
    """What a person is told of it; what nobody foresaw is written down."""
    from qlora_profiles.machine_errors import internal, problem_of

    return problem_of(error) or internal(error)


def _dispatch(argv: list[str]) -> int:
    """Parse and run. Raises QloraRunError for everything that a person or the machine can be the cause of."""
    from qlora_run.cli.parser import parse_command
    from qlora_run.commands import handler

    for word in argv:
        if not word.isascii() and any("\ud800" <= letter <= "\udfff" for letter in word):
            shown = word.encode("utf-8", "replace").decode("utf-8")
            raise UserError(f"{shown}: not in this system's encoding ({sys.getfilesystemencoding()})", "another name")
    command = parse_command(argv)
    _check_working_folder()
    return handler(command)(command)


def _check_working_folder() -> None:
    """Raises UserError where somebody removed the folder that the shell still stands in."""
    try:
        Path.cwd()
    except OSError as error:
        raise UserError("the working folder was removed", "cd to another folder") from error


def _ensure_utf8() -> None:
    """Start over in UTF-8 mode where the locale knows only ASCII: no Chinese file name can be told there."""
    if sys.getfilesystemencoding() != "ascii" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1"})


if __name__ == "__main__":
    sys.exit(main())
