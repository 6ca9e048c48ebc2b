"""``python -m qlora_core plan.json [--supervised]``: one run, from its plan alone."""

import argparse
import gc
import os
import sys
import time
import traceback
from contextlib import closing
from pathlib import Path

from msgspec import structs

from qlora_core.session.control import Control
from qlora_core.session.environment import set_environment
from qlora_core.session.event_log import EventLog
from qlora_core.session.stop_signals import ignore_from_here
from qlora_profiles import codec
from qlora_profiles.errors import (
    EXIT_ENVIRONMENT,
    EXIT_INTERRUPTED,
    EXIT_USER,
    EnvironmentProblem,
    Interrupted,
    QloraRunError,
)
from qlora_profiles.file_lock import Taken, claimed
from qlora_profiles.machine_errors import UNWRITABLE, problem_of
from qlora_profiles.plan import Resolved, RunPlan
from qlora_profiles.run_folder import CORE_RUNNING, LOG

PATIENCE_SECONDS = 20.0
"""How long a process that was killed may take to let go of the folder."""


def main(argv: list[str] | None = None) -> int:
    """Run the plan; every end but a kill is written to the event log."""
    parser = argparse.ArgumentParser(prog="python -m qlora_core", description=__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--supervised", action="store_true", help="stop when standard input says so or ends")
    parser.add_argument("--measured", action="store_true", help="this run was measured here before: no preflight")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="where the plan says so, too: run a model's own"
    )
    options = parser.parse_args(argv)
    gc.disable()  # until all is imported: hardly anything of it is ever garbage
    plan = codec.load(options.plan, RunPlan)
    if not options.trust_remote_code:  # a plan may be received: a file alone lets no code of others run
        plan = structs.replace(plan, run=plan.run | {"trust_remote_code": Resolved(False, "default", "not typed")})
    output = Path(plan.run_values().output)
    output.mkdir(parents=True, exist_ok=True)
    control = Control()
    control.listen(options.supervised)
    try:
        with claimed(output / CORE_RUNNING, PATIENCE_SECONDS), closing(EventLog(output)) as log:
            return _run(plan, log, control, options.measured)
    except Taken as taken:  # not for the event log: that is another process's
        print(f"{output}: process {taken.pid or '?'} is training there", file=sys.stderr)
        return EXIT_USER


def _run(plan: RunPlan, log: EventLog, control: Control, measured: bool) -> int:
    start = time.monotonic()
    set_environment(plan)
    try:
        from qlora_core.train.preload import read_ahead

        read_ahead(plan)
        from qlora_core.train.run import run

        return run(plan, log, control, measured)
    except (Interrupted, KeyboardInterrupt) as error:
        message = error.message if isinstance(error, Interrupted) else "stopped at once"
        return _failed(log, start, "interrupted", EXIT_INTERRUPTED, message, None)
    except Exception as error:
        if not isinstance(error, QloraRunError):
            traceback.print_exc()
        if _is_device_failure(error):
            os._exit(EXIT_ENVIRONMENT)  # nothing on the device can be trusted or freed any more: the launcher goes on
        problem = problem_of(error, log.path.parent) or _fault(error, log.path.parent)
        print(problem, file=sys.stderr)
        return _failed(log, start, "failed", problem.exit_code, problem.message, problem.fix)


def _fault(error: Exception, output: Path) -> EnvironmentProblem:
    """A fault of ours: the traceback is in the log of the run."""
    return EnvironmentProblem(f"{type(error).__name__}: {error}\n  the whole story: {output / LOG}")


def _is_device_failure(error: Exception) -> bool:
    """Whether the card itself failed: then every later call on it fails too, and only a new process helps."""
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)


def _failed(log: EventLog, start: float, status: str, code: int, message: str, fix: str | None) -> int:
    try:
        log.done(
            status=status, exit_code=code, step=log.step, seconds=time.monotonic() - start, message=message, fix=fix
        )
    except (OSError, EnvironmentProblem):
        return UNWRITABLE
    return code


if __name__ == "__main__":
    exit_code = main()
    ignore_from_here()
    sys.exit(exit_code)
