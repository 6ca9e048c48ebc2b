"""Whole runs in this process, and what their events say: for tests of what a recipe computes."""

from pathlib import Path
from typing import Any

from qlora_core.session.control import Control
from qlora_core.session.event_log import EventLog
from qlora_core.train.run import run
from qlora_profiles import events, run_folder
from support.plans import plan

STEPS = 3
ALL_TURNED: dict[str, Any] = {"lora_dropout": 0.3, "weight_decay": 0.2, "max_grad_norm": 0.05, "adam_beta1": 0.5}
ALL_TURNED |= {"adam_beta2": 0.9, "adam_epsilon": 1e-4, "use_rslora": True, "lora_alpha": 4.0, "lr_scheduler": "linear"}
ALL_TURNED |= {"warmup_steps": 2, "loss_on": "all", "seed": 5, "steps": 6}
"""Everything that acts in the loop, at once: a start that forgets one of them learns something else."""


def placed(value: Any, folder: Path) -> Any:
    """A value of the table with its folder put in."""
    if isinstance(value, tuple):
        return tuple(placed(part, folder) for part in value)
    return value.replace("{folder}", folder.as_posix()) if isinstance(value, str) else value


class Runs:
    """Runs of the core in this process, each made once; ``inputs`` holds ``model`` and ``rows.jsonl``."""

    def __init__(self, inputs: Path, folder: Path, **execution: Any) -> None:
        self._inputs, self._folder, self._execution = inputs, folder, execution
        self._made: dict[str, dict[str, Any]] = {}

    def figures(self, **settings: Any) -> dict[str, Any]:
        key = repr(sorted(settings.items()))
        if key not in self._made:
            folder = self._folder / str(len(self._made))
            self._made[key] = figures_of(folder, self.train(folder, **settings))
        return self._made[key]

    def train(self, folder: Path, stop_at: int | None = None, **settings: Any) -> int:
        """The exit code of a run in ``folder``, asked to stop once ``stop_at`` steps are done."""
        values: dict[str, Any] = {
            "steps": STEPS,
            "data": (f"{self._inputs}/rows.jsonl",),
            "learning_rate": 1e-2,
            "keep": "last",
        }
        values |= {"lr_scheduler": "constant", "warmup_steps": None, "warmup_ratio": 0.0, "val_size": 2.0}
        values |= self._execution | {name: placed(value, self._inputs) for name, value in settings.items()}
        data, model = values.pop("data"), values.pop("model", self._inputs / "model")
        folder.mkdir(parents=True, exist_ok=True)
        made = plan(Path(model), Path(data[0]), folder, **values)
        control = Control()
        log = Stopping(folder, control, stop_at)
        try:
            return run(made, log, control)
        except Exception as error:
            return getattr(error, "exit_code", -1)
        finally:
            log.close()


class Stopping(EventLog):
    """An event log that asks for the end of the run once a step is done."""

    def __init__(self, folder: Path, control: Control, stop_at: int | None) -> None:
        super().__init__(folder)
        self._control, self._stop_at = control, stop_at

    def write(self, kind: Any, **fields: Any) -> None:
        super().write(kind, **fields)
        if kind is events.StepEvent and fields["step"] == self._stop_at:
            self._control.set()


def figures_of(folder: Path, exit_code: int) -> dict[str, Any]:
    """What a run's events say, each as a list."""
    told = [*events.all_events(folder / run_folder.EVENTS)]
    steps = {e.step: e for e in told if isinstance(e, events.StepEvent)}
    measured = [e for e in told if isinstance(e, events.EvalEvent)]
    figures: dict[str, Any] = {
        name: [getattr(steps[number], name) for number in sorted(steps)]
        for name in ("step", "tokens", "loss", "grad_norm", "learning_rate", "supervised_tokens")
    }
    return {
        "steps": figures["step"],
        "tokens": figures["tokens"],
        "supervised": figures["supervised_tokens"],
        "loss": figures["loss"],
        "grad_norm": figures["grad_norm"],
        "rate": figures["learning_rate"],
        "trainable": [e.trainable_params for e in told if isinstance(e, events.RunEvent)],
        "untrained_loss": [e.loss for e in measured][:1],
        "held_out": [len(e.row_losses) for e in measured][:1],
        "exit_code": [exit_code],
    }
