import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import support.standin_core
from support.children import PATIENCE_SECONDS, is_gone
from support.run_plans import run_plan
from support.witness import Witness, kill_children

from qlora_profiles import codec, run_folder
from qlora_profiles.errors import EnvironmentProblem, Interrupted, UserError
from qlora_profiles.events import DoneEvent, RunEvent, StepEvent, all_events
from qlora_run.report.run_state import RunState
from qlora_run.supervise.exit_status import ExitStatus
from qlora_run.supervise.supervisor import POLL_SECONDS, STOPPING, child_environment, run_core, supervise
from qlora_run.supervise.tail import Tail
from qlora_run.terminal.console import make_console
from qlora_run.terminal.plain import PlainView

STAND_IN = Path(support.standin_core.__file__)


def interrupt_after(*steps: int) -> Callable[[RunState], None]:
    """Press Ctrl-C once the run is so far, once for each of ``steps``."""
    left = list(steps)

    def act(state: RunState) -> None:
        if left and state.step >= left[0]:
            left.pop(0)
            signal.raise_signal(signal.SIGINT)

    return act


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "a run"
    folder.mkdir()
    codec.save(run_plan({"output": str(folder)}), folder / "plan.json")
    return folder


def command(mode: str, output: Path, pace_seconds: float = 0.0) -> list[str]:
    return [sys.executable, str(STAND_IN), mode, str(output), str(pace_seconds)]


def run(mode: str, output: Path, view: Witness, pace_seconds: float = 0.0) -> ExitStatus:
    env = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return supervise(output / "plan.json", output, view, env, command(mode, output, pace_seconds))


def test_a_run_that_ends_well_is_seen_to_its_last_event(output: Path) -> None:
    view = Witness()
    ending = run("finish", output, view)
    assert (ending.exit_code, ending.problem, ending.died) == (0, None, False)
    assert view.events == all_events(output / run_folder.EVENTS)
    assert view.state.step == support.standin_core.STEPS_TOTAL
    assert view.state.done is not None
    assert view.ended


def test_run_core_returns_the_exit_code(output: Path) -> None:
    env = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    assert run_core(output / "plan.json", output, Witness(), env, command("fail", output)) == 2


def test_ctrl_c_saves_and_stops(output: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    view = Witness(interrupt_after(3))
    ending = run("until_stopped", output, view, pace_seconds=0.02)
    assert ending.exit_code == 130
    assert ending.problem is None
    assert view.said == [STOPPING]
    assert view.state.checkpoint is not None
    assert view.state.checkpoint.step == view.state.step >= 3
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_kills_the_child_and_its_children(output: Path) -> None:
    view = Witness(interrupt_after(2, 2))
    ending = run("deaf", output, view)
    assert ending.exit_code == 130
    assert len(view.said) == 2
    assert isinstance(ending.problem, Interrupted)
    assert ending.problem.message == "Stopped at once; saved is step 2."
    assert ending.problem.fix is not None
    assert ending.problem.fix.startswith("qlora-run resume ")
    grandchild = int((output / "grandchild").read_text(encoding="utf-8"))
    assert is_gone(grandchild)


def test_a_child_that_dies_is_explained_and_can_be_resumed(output: Path) -> None:
    view = Witness()
    ending = run("die", output, view)
    assert (ending.exit_code, ending.died) == (3, True)
    assert isinstance(ending.problem, EnvironmentProblem)
    assert ending.problem.message.startswith("the training process died at step 2 (exit 77)\n  last words in ")
    assert ending.problem.message.endswith("\n    CUDA error: an illegal memory access was encountered")
    assert "    loading…\n" in ending.problem.message
    assert ending.problem.fix is not None
    assert ending.problem.fix.startswith("qlora-run resume ")
    assert view.state.step == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_child_that_is_killed_from_outside_is_explained(output: Path) -> None:
    def kill(state: RunState) -> None:
        if state.step >= 2:
            kill_children(str(STAND_IN))

    ending = run("deaf", output, Witness(kill))
    psutil.Process(int((output / "grandchild").read_text(encoding="utf-8"))).kill()
    assert (ending.exit_code, ending.died) == (3, True)
    assert ending.problem is not None
    assert "SIGKILL: the system often does that when main memory runs out" in ending.problem.message


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_signal_to_the_whole_group_is_no_crash(output: Path) -> None:
    """The stand-in dies of it where the core would save: nothing starts it again, and the exit code says why."""
    done: list[int] = []

    def ask(state: RunState) -> None:
        if state.step >= 2 and not done:
            done.append(state.step)
            for child in psutil.Process().children():
                if str(STAND_IN) in child.cmdline():
                    child.terminate()
            signal.raise_signal(signal.SIGTERM)

    view = Witness(ask)
    env = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    assert run_core(output / "plan.json", output, view, env, command("deaf", output)) == 130
    psutil.Process(int((output / "grandchild").read_text(encoding="utf-8"))).kill()
    assert isinstance(view.problem, Interrupted)
    assert sum(isinstance(event, RunEvent) for event in all_events(output / run_folder.EVENTS)) == 1


def test_only_this_childs_words_are_quoted(output: Path) -> None:
    (output / "run.log").write_text("words of an earlier run\n", encoding="utf-8")
    ending = run("traceback", output, Witness())
    assert ending.problem is not None
    assert "earlier run" not in ending.problem.message
    assert ending.problem.message.endswith("RuntimeError: nobody caught this")
    assert "before the first step" in ending.problem.message
    assert (ending.exit_code, ending.problem.fix) == (3, "qlora-run doctor")
    assert (output / "run.log").read_text(encoding="utf-8").startswith("words of an earlier run\n")


def test_what_the_child_says_is_wrong_is_passed_on(output: Path) -> None:
    ending = run("fail", output, Witness())
    assert isinstance(ending.problem, UserError)
    assert str(ending.problem) == "step 3: the loss is nan  -> --learning-rate 5e-5"
    assert (ending.exit_code, ending.died) == (2, False)


def test_an_internal_error_points_to_the_log_and_to_the_checkpoint(output: Path) -> None:
    ending = run("internal", output, Witness())
    assert isinstance(ending.problem, EnvironmentProblem)
    assert ending.problem.message.startswith("KeyError: 'x'\n  the whole story: ")
    assert ending.problem.fix is not None
    assert "resume" in ending.problem.fix
    assert ending.exit_code == 3


def test_a_resumed_run_sees_its_history_and_only_new_events(output: Path) -> None:
    run("die", output, Witness())
    _drop_broken_tail(output / run_folder.EVENTS)
    view = Witness()
    ending = run("go_on", output, view)
    assert view.history is not None
    assert view.history.step == 2
    assert view.history.done is None
    assert [e.step for e in view.events if isinstance(e, StepEvent)] == [3, 4]
    assert [p.step for p in ending.state.losses.points] == [1, 2, 3, 4]
    assert [e.step for e in ending.state.evals] == [0]


def _drop_broken_tail(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: data.rfind(b"\n") + 1])


def test_a_launcher_that_fails_lets_the_child_save(output: Path) -> None:
    def fail(state: RunState) -> None:
        if state.step >= 3:
            raise RuntimeError("a bug of ours")

    with pytest.raises(RuntimeError, match="a bug of ours"):
        run("until_stopped", output, Witness(fail), pace_seconds=0.02)
    last = all_events(output / run_folder.EVENTS)[-1]
    assert isinstance(last, DoneEvent)
    assert last.status == "interrupted"


def test_training_goes_on_when_nobody_can_see_it(output: Path) -> None:
    def hang_up(state: RunState) -> None:
        raise BrokenPipeError

    assert run("finish", output, Witness(hang_up)).exit_code == 0


def test_a_child_that_cannot_be_started(output: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="cannot be started"):
        supervise(output / "plan.json", output, Witness(), command=[str(output / "no-such-program")])


def test_another_thread_can_supervise_too(output: Path) -> None:
    endings: list[ExitStatus] = []
    thread = threading.Thread(target=lambda: endings.append(run("finish", output, Witness())))
    thread.start()
    thread.join(PATIENCE_SECONDS)
    assert [ending.exit_code for ending in endings] == [0]


def test_the_child_gets_its_environment(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    run("environment", output, Witness())
    given = dict(
        line.split("=", 1) for line in (output / "environment").read_text(encoding="utf-8").splitlines() if "=" in line
    )
    assert {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"}.items() <= given.items()
    assert given["CUDA_VISIBLE_DEVICES"] == "1"
    assert given["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"


def test_the_allocator_is_set_by_the_plan_unless_a_person_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    assert child_environment(run_plan(), {})["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert "PYTORCH_ALLOC_CONF" not in child_environment(run_plan({"expandable_segments": False}), {})
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:64")
    assert child_environment(run_plan(), {})["PYTORCH_ALLOC_CONF"] == "max_split_size_mb:64"
    assert child_environment(run_plan(), {"PYTORCH_ALLOC_CONF": "x:1"})["PYTORCH_ALLOC_CONF"] == "x:1"


def test_a_whole_run_in_plain_lines(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="gbk", newline="\n")
    view = PlainView(make_console(out), run_plan(), output)
    env = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    assert run_core(output / "plan.json", output, view, env, command("finish", output, 0.001)) == 0
    out.flush()
    assert isinstance(out.buffer, io.BytesIO)
    text = out.buffer.getvalue().decode("gbk")
    assert "step 1/40" in text
    assert "step 40/40" in text
    assert "Cannot tell" in text, text[-900:]
    assert "3 unseen rows: 2 better, 1 equal, 0 worse" in text
    assert capsys.readouterr() == ("", "")


def test_the_tail_reads_each_event_once_and_passes_over_damage(tmp_path: Path) -> None:
    path = tmp_path / run_folder.EVENTS
    tail = Tail(path)
    assert tail.new_events() == []
    good = b'{"type":"warning","time_s":1.0,"message":"a"}\n'
    path.write_bytes(good + b'{"type":"wa{"type":"warning"}\n' + good + good[:10])
    assert len(tail.new_events()) == 2
    with path.open("ab") as file:
        file.write(good[10:])
    assert len(tail.new_events()) == 1
    assert tail.new_events() == []
    path.write_bytes(good)
    assert len(tail.new_events()) == 1


def test_the_view_is_looked_after_about_five_times_a_second() -> None:
    assert 0.1 <= POLL_SECONDS <= 0.3
