"""Keeping the adapter of the best held-out loss: the last step is often not the best one."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from msgspec import Struct

from qlora_core.export.sealed import check_whole, seal
from qlora_profiles import codec, events, run_folder
from qlora_profiles.errors import UserError


class Kept(Struct, frozen=True, kw_only=True):
    """Which adapter lies in the folder: of which step, and its held-out loss (nats per supervised token)."""

    step: int
    loss: float


class BestCheckpoint:
    """The adapter with the lowest held-out loss so far, in a folder of its own beside the checkpoints.

    Args:
        output: the run's folder.
        past: events of the run so far, so that what should be kept is known.
        done: the step that the run goes on from; what was measured after it is measured again.
        warn: hears that what was kept is gone or damaged. It counts no more then: the steps from here on compete anew.
    """

    def __init__(
        self,
        output: Path,
        past: Iterable[events.Event],
        done: int = 0,
        warn: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.folder, self._part = output / run_folder.BEST_ADAPTER, output / run_folder.BEST_ADAPTER_PART
        if (self._part / run_folder.DIGESTS).is_file():
            self._take_part()  # a kill fell in between
        losses = {e.step: e.loss for e in past if isinstance(e, events.EvalEvent) and 0 < e.step <= done}
        fault = self._fault() if losses or self.folder.exists() else None
        self.lost = fault is not None
        if fault:
            best = min(losses, key=lambda step: losses[step], default=0)
            warn(f"the best adapter so far, of step {best}, is lost ({fault}); the best from here on is kept")
        kept = codec.load(self.folder / run_folder.BEST_RECORD, Kept) if self.folder.exists() and not fault else None
        self.loss, self.step = (kept.loss, kept.step) if kept else (float("inf"), 0)

    def _fault(self) -> str | None:
        """Why what lies in the folder cannot be used; ``None`` where it can."""
        for name in (run_folder.ADAPTER_WEIGHTS, run_folder.BEST_RECORD):
            if not (self.folder / name).is_file():
                return f"{self.folder / name} is gone"
        try:
            check_whole(self.folder, "")
        except UserError as error:
            return error.message
        return None

    def offer(self, model: Any, step: int, loss: float) -> None:
        """Keep the model's adapter if its loss is the lowest; step 0, the base, is no candidate."""
        if step == 0 or loss >= self.loss:
            return
        shutil.rmtree(self._part, ignore_errors=True)
        model.save_pretrained(str(self._part))
        codec.save(Kept(step=step, loss=loss), self._part / run_folder.BEST_RECORD)
        seal(self._part)
        self._take_part()
        self.loss, self.step = loss, step

    def _take_part(self) -> None:
        """Let a whole adapter take the place of the one before: at every moment one of the two is there."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._part.replace(self.folder)

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
