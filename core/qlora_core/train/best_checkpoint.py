"""Keeping the adapter of the best held-out loss: the last step is often not the best one."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from qlora_core.export.sealed import check_whole, seal
from qlora_profiles import events, run_folder
from qlora_profiles.errors import UserError


class BestCheckpoint:
    """The adapter with the lowest held-out loss so far, in a folder of its own beside the checkpoints.

    Args:
        output: the run's folder.
        past: events of the run so far, so that a resumed run knows what was best.
        warn: hears that what was kept is gone or damaged. It counts no more then: the steps from here on compete anew.
    """

    def __init__(
        self, output: Path, past: Iterable[events.Event], warn: Callable[[str], None] = lambda message: None
    ) -> None:
        self.folder = output / run_folder.BEST_ADAPTER
        before = [e for e in past if isinstance(e, events.EvalEvent) and e.step > 0]
        best = min(before, key=lambda e: e.loss, default=None)
        fault = self._fault() if best else None
        self.lost = fault is not None
        if best and fault:
            warn(f"the best adapter so far, of step {best.step}, is lost ({fault}); the best from here on is kept")
            best = None
        self.loss = best.loss if best else float("inf")
        self.step = best.step if best else 0

    def _fault(self) -> str | None:
        """Why what lies in the folder cannot be used; ``None`` where it can."""
        if not (self.folder / run_folder.ADAPTER_WEIGHTS).is_file():
            return f"{self.folder / run_folder.ADAPTER_WEIGHTS} is gone"
        try:
            check_whole(self.folder, "")
        except UserError as error:
            return error.message
        return None

    def offer(self, model: Any, step: int, loss: float) -> None:
        """Keep the model's adapter if its loss is the lowest; step 0, the base, is no candidate."""
        if step == 0 or loss >= self.loss:
            return
        self.loss, self.step = loss, step
        model.save_pretrained(str(self.folder))
        seal(self.folder)

    def restore(self, model: Any, last_step: int) -> bool:
        """Put the best adapter back into ``model``; False where the last step is the best, or none was kept.

        Raises:
            UserError: it is not as it was written.
        """
        file = self.folder / run_folder.ADAPTER_WEIGHTS
        if self.step in (0, last_step) or not file.is_file():
            return False
        check_whole(self.folder, "the same command again keeps the last step's")
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        set_peft_model_state_dict(model, load_file(file))
        return True
