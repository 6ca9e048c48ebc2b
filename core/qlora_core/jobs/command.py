"""The frame of the core's small commands: quiet libraries, one-line errors, exit codes."""

import os
import sys
import warnings
from collections.abc import Callable

from qlora_core.session.stop_signals import install, interrupt
from qlora_core.session.streams import lasting_streams
from qlora_profiles.errors import EXIT_INTERRUPTED, EXIT_OK
from qlora_profiles.machine_errors import internal, problem_of


def run_command(work: Callable[[str], None]) -> int:
    """Do ``work`` with the JSON of the command line; returns the exit code.

    Every error is one line on standard error; the traceback of what nobody foresaw lies in a file. When nobody reads
    any more (``| head -1``) the work goes on, and so does its exit code.
    """
    install(interrupt)
    with lasting_streams() as streams:
        code = _exit_code(work)
    return streams.code_after(code, output_matters=True)


def _exit_code(work: Callable[[str], None]) -> int:
    try:
        _hush()
        work(sys.argv[1])
    except KeyboardInterrupt:
        print()
        return EXIT_INTERRUPTED
    except Exception as error:
        problem = problem_of(error) or internal(error)
        print(problem, file=sys.stderr)
        return problem.exit_code
    return EXIT_OK


def _hush() -> None:
    """The libraries' notes and progress bars do not belong in a conversation."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("BITSANDBYTES_NOWELCOME", "1")
    warnings.filterwarnings("ignore")
    import logging

    from transformers.utils import logging as library

    library.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
