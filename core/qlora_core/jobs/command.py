"""The frame of the core's small commands: quiet libraries, one-line errors, exit codes."""

import os
import sys
import warnings
from collections.abc import Callable

from qlora_core.session.streams import lasting_streams
from qlora_profiles.errors import EXIT_INTERRUPTED, EXIT_OK, QloraRunError


def run_command(work: Callable[[str], None]) -> int:
    """Do ``work`` with the JSON of the command line; returns the exit code.

    A person's mistake is one line on standard error; anything unforeseen keeps its traceback. When nobody reads
    any more (``| head -1``) the work goes on, and so does its exit code.
    """
    _hush()
    with lasting_streams():
        return _exit_code(work)


def _exit_code(work: Callable[[str], None]) -> int:
    try:
        work(sys.argv[1])
    except QloraRunError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print()
        return EXIT_INTERRUPTED
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
