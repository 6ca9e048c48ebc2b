"""At the end of a run: what was saved is read back by plain transformers, and has to be what was trained."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_core.data.pipeline import TEMPLATE_DATE
from qlora_core.export.read_back import (
    QUANTISED,
    TOLERANCES,
    Forward,
    KeptRows,
    ReadBackJob,
    Reader,
    SavedFolder,
    job_file,
    row_for_weights,
)
from qlora_core.session.event_log import EventLog
from qlora_core.session.ranks import SINGLE
from qlora_core.train.dataset import PreparedData
from qlora_profiles import codec, events, run_folder
from qlora_profiles.errors import EnvironmentProblem, first_line
from qlora_profiles.events import ReadBack
from qlora_profiles.plan import RunPlan

if TYPE_CHECKING:
    from qlora_core.export.merge_witness import MergeWitness

PHASE = "reading back what was saved"


class EndCheck:
    """Watches what is saved, and has it read back.

    The other process is started with this object, so that it imports while the files are written. Call ``trained``
    before the model is let go, ``witness`` is for the merge, ``run`` comes last.
    """

    def __init__(self, plan: RunPlan, data: PreparedData, log: EventLog, output: Path) -> None:
        self._plan, self._data, self._log, self._output = plan, data, log, output
        self._reader: Reader | None = None
        self._trained: Forward | None = None
        self._why_not = "--read-back false"
        self._witness: MergeWitness | None = None
        if plan.run_values().read_back:
            try:
                self._reader = Reader(adapter=plan.recipe_values().method != "full")
            except EnvironmentProblem as problem:
                self._why_not = problem.message

    def trained(self, trainer: Any) -> None:
        """Take the logits and the sums of the model that was trained."""
        if self._reader is None:
            return
        try:
            self._trained = _forward_of(self._plan, trainer, row_for_weights(self._data.read_back), self._data.stop_ids)
            if self._trained.base is not None:
                codec.save(self._kept(), self._output / run_folder.READ_BACK_ROWS)
        except Exception as error:  # a check must not cost what it is to check
            self._why_not = f"the trained model's logits could not be taken ({first_line(error)[:200]})"

    def witness(self) -> "MergeWitness | None":
        """What watches the merge; ``None`` where nothing is read back."""
        if self._reader is None:
            return None
        from qlora_core.export.merge_witness import MergeWitness

        self._witness = MergeWitness(row_for_weights(self._data.read_back))
        return self._witness

    def run(self, trainer: Any, stop: Callable[[], object]) -> ReadBack | None:
        """Read back and write down what came of it; ``None`` where ``stop`` ended it."""
        found = self._read(trainer, stop)
        if found is not None:
            self._log.write(events.ReadBackEvent, found=found)
        return found

    def _read(self, trainer: Any, stop: Callable[[], object]) -> ReadBack | None:
        folders = self._folders()
        if self._reader is None:
            names = tuple(Path(folder.path).name for folder in folders)
            return ReadBack(state="unchecked", folders=names, rows=0, logits=False, unchecked=(self._why_not,))
        from qlora_core.memory.device_memory import release

        self._log.phase(PHASE)
        release(trainer)
        lost = {run_folder.MERGED_MODEL: self._witness.faults()} if self._witness is not None else {}
        return self._reader.read(self._job(folders), job_file(self._output), stop, lost)

    def _job(self, folders: list[SavedFolder]) -> ReadBackJob:
        import torch

        kept = self._kept()
        return ReadBackJob(
            rows=kept.rows,
            folders=folders,
            stop_id=kept.stop_id,
            today=kept.today,
            trust_remote_code=self._plan.run_values().trust_remote_code,
            threads=torch.get_num_threads(),
        )

    def _kept(self) -> KeptRows:
        chat = any(row.messages for row in self._data.read_back)
        return KeptRows(
            rows=list(self._data.read_back),
            adapter_sums=self._trained.sums if self._trained else {},
            stop_id=self._data.stop_ids[0] if chat else None,
            today=TEMPLATE_DATE if self._data.chat.tells_date else None,
        )

    def _folders(self) -> list[SavedFolder]:
        full = self._plan.recipe_values().method == "full"
        name = run_folder.MERGED_MODEL if full else run_folder.ADAPTER
        folders = [SavedFolder(path=str(self._output / name), forward=self._trained, why_not=self._why_not)]
        if self._witness is not None:
            from qlora_core.export.merge_witness import merged_folder

            folders.append(merged_folder(self._output / run_folder.MERGED_MODEL, self._witness, self._data.stop_ids))
        return folders

    def end(self) -> None:
        """Let the other process go, whatever it does."""
        if self._reader is not None:
            self._reader.end()


def _forward_of(plan: RunPlan, trainer: Any, ids: list[int], stop_ids: tuple[int, ...]) -> Forward:
    """How to load what was trained again, and what it must compute then."""
    from qlora_core.export.fingerprints import adapter_sums, logits_of, model_sums
    from qlora_core.memory.device_memory import autocast
    from qlora_core.memory.oom_retry import SAMPLE_WAYS
    from qlora_core.model.loading import hub_arguments, local_model, quantisation_config, weight_dtype

    recipe, execution, run = plan.recipe_values(), plan.execution_values(), plan.run_values()
    model = trainer.model
    model.eval()

    def work() -> Any:
        with autocast(execution):
            return logits_of(model, ids)

    quantisation = quantisation_config(recipe, execution)
    source, full = local_model(recipe, run), recipe.method == "full"
    return Forward(
        device=f"cuda:{SINGLE.local_rank}" if execution.device == "cuda" else execution.device,
        dtype="auto" if full else str(weight_dtype(recipe, execution)).removeprefix("torch."),
        tolerance=max(TOLERANCES[execution.compute_dtype], QUANTISED if quantisation else 0.0),
        sums=model_sums(model) if full else adapter_sums(model),
        logits=trainer.execution.run_beside_steps(work, SAMPLE_WAYS),
        base=None if full else source,
        loading={} if full else hub_arguments(recipe, run, source),
        quantisation=quantisation.to_dict() if quantisation else None,
        autocast=None if execution.compute_dtype == "float32" else execution.compute_dtype,
        stop_ids=stop_ids,
    )
