"""Running the core in a child process: start it, show what it does, stop it gently, explain its death.

Nothing the core's libraries do to their process reaches the launcher: their output goes to ``run.log``, and a
crash ends the child alone. The child obeys a word on its standard input, ``stop``; when the launcher dies, the
end of that input means the same. What it measures before its first step is answered there too.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from qlora_core.session import child_process
from qlora_core.session.child_process import ChildProcess
from qlora_core.session.stop_signals import StopRequests, stop_requests
from qlora_profiles import run_folder
from qlora_profiles.events import MeasuredEvent
from qlora_profiles.plan import RunPlan
from qlora_run.report.run_state import RunState, fold
from qlora_run.report.view import View
from qlora_run.supervise.exit_status import ExitStatus, exit_status_of, last_lines_of
from qlora_run.supervise.restarts import Restarts
from qlora_run.supervise.tail import Tail
from qlora_run.supervise.tuner import Tuner

POLL_SECONDS = 0.2
STOPPING = "Saving after this step... Ctrl-C again stops at once."
KILLING = "Stopping at once."


def run_core(
    plan_path: Path,
    output: Path,
    view: View,
    env: Mapping[str, str] | None = None,
    command: Sequence[str] | None = None,
) -> int:
    """Run a plan in a child process under ``view``, again after a death that allows it, and return the exit code.

    ``env`` adds to the environment; ``command`` stands in for the core.

    Raises:
        EnvironmentProblem: the child could not be started.
    """
    restarts = Restarts(plan_path, output)
    with stop_requests() as requests:
        while True:
            end = supervise(plan_path, output, view, env, command, restarts.take, requests)
            if not restarts.going_on:
                return end.exit_code


def supervise(
    plan_path: Path,
    output: Path,
    view: View,
    env: Mapping[str, str] | None = None,
    command: Sequence[str] | None = None,
    goes_on: Callable[[ExitStatus, Callable[[str], None]], bool] = lambda end, say: False,
    requests: StopRequests | None = None,
) -> ExitStatus:
    """One process of ``run_core``, and all about its end; the view hears of the end unless ``goes_on``.

    ``requests`` are those to stop, where the caller counts them already.
    """
    output.mkdir(parents=True, exist_ok=True)
    tuner = Tuner(plan_path)
    command = command or core_command(plan_path, tuner)
    log_path = output / run_folder.LOG
    tail = Tail(output / run_folder.EVENTS)
    with log_path.open("ab") as log:
        log_start = log.seek(0, os.SEEK_END)
        watch = _Watch(tail, view, fold(tail.new_events()).closed(), tuner)
        with nullcontext(requests) if requests else stop_requests() as asked:
            # the terminal's Ctrl-C is ours to pass on
            child = child_process.start(
                command,
                "the training process",
                output=log,
                environment=child_environment(tuner.plan, env or {}),
                told=True,
                own_group=True,
                holds_signals_back=True,
            )
            _follow(child, watch, asked)
    end = exit_status_of(child.exit_code, watch.state, asked.count, output, last_lines_of(log_path, log_start))
    if not goes_on(end, watch.say):
        watch.end(end)
    return end


def core_command(plan_path: Path, tuner: Tuner) -> list[str]:
    """The command of the core; it need not measure what was measured before. The plan is one of our own making."""
    trusted = ["--trust-remote-code"] if tuner.plan.run_values().trust_remote_code else []
    known = ["--measured"] if tuner.measured_before() else []
    return [sys.executable, "-m", "qlora_core", str(plan_path.absolute()), "--supervised", *known, *trusted]


def child_environment(plan: RunPlan, extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of the core. What a person set for torch stays; ``extra`` wins over all."""
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    weak = {"TOKENIZERS_PARALLELISM": "true"}
    if plan.execution_values().expandable_segments:
        weak["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    return child_process.python_environment(weak=weak, strong=quiet | dict(extra))


class _Watch:
    """The state of the run, and the view that follows it.

    A view whose stream is gone (a closed pipe) is let go; the training does not depend on being seen.
    """

    def __init__(self, tail: Tail, view: View, state: RunState, tuner: Tuner) -> None:
        self.tail, self.view, self.state, self.tuner = tail, view, state, tuner
        self.seen = True
        self.answers: list[str] = []

    @contextmanager
    def _showing(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.seen = False

    def begin(self) -> None:
        with self._showing():
            self.view.begin(self.state)

    def look(self) -> None:
        """Take in what is new and show it."""
        for event in self.tail.new_events():
            self.state = self.state.after(event)
            if isinstance(event, MeasuredEvent):
                self._measured(event)
            if self.seen:
                with self._showing():
                    self.view.event(event, self.state)
        if self.seen:
            with self._showing():
                self.view.tick(self.state)

    def _measured(self, event: MeasuredEvent) -> None:
        """A preflight waits for its answer; the measurement of a whole run is only kept."""
        if event.stage == "preflight":
            self.answers.append(self.tuner.answer(event))
        else:
            self.tuner.record(event)

    def say(self, text: str) -> None:
        if self.seen:
            with self._showing():
                self.view.say(text)

    def end(self, end: ExitStatus) -> None:
        if self.seen:
            with self._showing():
                self.view.end(end.state, end.problem)


def _follow(child: ChildProcess, watch: _Watch, requests: StopRequests) -> None:
    """Watch the child until it is gone, and pass on what is asked for."""
    asked = 0
    try:
        watch.begin()
        while not child.ended_within(POLL_SECONDS):
            watch.look()
            while watch.answers:
                child.tell(f"go {watch.answers.pop(0)}")
            if requests.count > asked:
                asked += 1
                watch.say(STOPPING if asked == 1 else KILLING)
                child.tell("stop") if asked == 1 else child.kill()
        watch.look()
    finally:
        child.hang_up()  # one that still runs, because we fail, saves and ends
        while not child.ended_within(POLL_SECONDS):
            if requests.count > asked:
                child.kill()
