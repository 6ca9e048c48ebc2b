"""A whole run from its plan: prepare, load, train, write the artifacts."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_core.backends.parity import agreed
from qlora_core.export import artifacts
from qlora_core.export.read_back import problem
from qlora_core.export.trained import save_trained
from qlora_core.model import lora_init
from qlora_core.session.control import Control
from qlora_core.session.event_log import EventLog
from qlora_core.train import checkpoints
from qlora_core.train.dataset import PHASE, PreparedData, prepare_data
from qlora_core.train.preload import collect_from_here, import_meanwhile
from qlora_core.train.read_back import EndCheck
from qlora_profiles import events, run_folder
from qlora_profiles.errors import EXIT_ENVIRONMENT, EXIT_INTERRUPTED, EXIT_OK, EnvironmentProblem
from qlora_profiles.plan import RunPlan
from qlora_profiles.units import GIB

if TYPE_CHECKING:
    from qlora_core.train.best_checkpoint import BestCheckpoint


def run(plan: RunPlan, log: EventLog, control: Control, measured: bool = False) -> int:
    """Train what the plan says; returns the exit code.

    ``measured`` leaves out the preflight: the launcher knows its outcome.

    Raises:
        UserError: the data, the model or a checkpoint is not what the plan needs, or training fell apart.
        EnvironmentProblem: this machine cannot do it; memory ran out for good.
        Interrupted: the run was stopped before the first step.
    """
    start = time.monotonic()
    output = Path(plan.run_values().output)
    checkpoint = checkpoints.choose(plan.run_values().resume, output, plan.recipe_digest(), log.warn, plan.base_parts())
    log.phase(PHASE)
    data = prepare_data(plan, output, log, import_meanwhile(plan), control.stop_here)
    control.stop_here()
    planned, plan = plan, agreed(plan, data.train, log, control)
    begun = run_folder.checkpoint_step(checkpoint) if checkpoint else 0
    trainer = _trainer(plan, data, log, control, output, begun)
    log.in_force = trainer.execution.values
    if not measured and measured_first(plan):
        _preflight(trainer, data)
        control.stop_here()
    _announce(plan, trainer, checkpoint, log)
    _sample(plan, trainer, data, log, step=0 if checkpoint is None else None)
    done = trainer.train_from(checkpoint)
    _write_measured(trainer, log)
    if done < trainer.state.max_steps:
        _finish(log, "interrupted", EXIT_INTERRUPTED, done, start, {}, trainer)
        return EXIT_INTERRUPTED
    check = EndCheck(plan, data, log, output)
    try:
        _restore_best(trainer, log, done)
        _sample(plan, trainer, data, log, step=done)
        files = _write_artifacts(planned, trainer, data, log, output, check)
        found = check.run(trainer, control.__bool__)
    finally:
        check.end()
    status, code, fault = _end(found)
    _finish(log, status, code, done, start, files, trainer, fault)
    return code


def _end(found: events.ReadBack | None) -> tuple[str, int, str | None]:
    """How a run ends whose artifacts were read back, or not to the end: status, exit code, what is wrong."""
    if found is None:
        return "interrupted", EXIT_INTERRUPTED, None
    if found.state == "different":
        return "failed", EXIT_ENVIRONMENT, problem(found).message
    return "finished", EXIT_OK, None


def _trainer(plan: RunPlan, data: PreparedData, log: EventLog, control: Control, output: Path, begun: int = 0) -> Any:
    """The trainer with its model.

    Raises:
        EnvironmentProblem: the model alone takes more memory than the run may have.
    """
    from qlora_core.memory.oom import is_out_of_memory

    try:
        return _make_trainer(plan, data, log, control, output, begun)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    budget = plan.memory.budget_bytes
    allowed = f" into the {budget / GIB:.1f} GiB that the run may take" if budget else ""
    raise EnvironmentProblem(f"out of memory while {plan.model.name} was loaded{allowed}", "a smaller --model")


def _make_trainer(plan: RunPlan, data: PreparedData, log: EventLog, control: Control, output: Path, begun: int) -> Any:
    from qlora_core import backends
    from qlora_core.memory import device_memory

    backend = backends.begin(plan)  # before transformers: it may have to be changed as it is imported
    import transformers

    from qlora_core.train.job import Job
    from qlora_core.train.trainer import StepTrainer

    collect_from_here()
    recipe = plan.recipe_values()
    transformers.set_seed(recipe.seed)
    memory = device_memory.prepare(plan)
    log.phase("loading the model")
    loaded = backend.load(plan, log.warn)
    lora_init.initialise(loaded.model, recipe.seed)
    control.stop_here()
    return StepTrainer(
        Job(
            plan=plan,
            backend=backend,
            loaded=loaded,
            train=data.train,
            held_out=data.held_out,
            log=log,
            control=control,
            memory=memory,
            output=output,
            best_checkpoint=_best_checkpoint(plan, output, log, begun),
        )
    )


def measured_first(plan: RunPlan) -> bool:
    """Whether the heaviest step is measured before the first: main memory needs no such care."""
    return plan.run_values().preflight and plan.execution_values().device == "cuda"


def _preflight(trainer: Any, data: PreparedData) -> None:
    from qlora_core.train.preflight import ProbePrompt, preflight

    preflight(trainer, ProbePrompt(prompt_ids=data.prompt_ids("Hello"), stop_ids=data.stop_ids))
    trainer.execution.begin()


def _best_checkpoint(plan: RunPlan, output: Path, log: EventLog, begun: int) -> "BestCheckpoint | None":
    """What keeps the best adapter, where the recipe wants it and there is one."""
    recipe = plan.recipe_values()
    if recipe.keep == "last" or recipe.method == "full":
        return None
    from qlora_core.train.best_checkpoint import BestCheckpoint

    return BestCheckpoint(output, events.all_events(output / run_folder.EVENTS), begun, log.warn)


def _restore_best(trainer: Any, log: EventLog, done: int) -> None:
    best = trainer.job.best_checkpoint
    if best is not None and best.restore(trainer.model, done):
        log.warn(f"the adapter of step {best.step} is kept: its held-out loss {best.loss:.3f} was the best")


def _announce(plan: RunPlan, trainer: Any, checkpoint: Path | None, log: EventLog) -> None:
    log.write(
        events.RunEvent,
        steps_total=plan.time.steps,
        first_step=run_folder.checkpoint_step(checkpoint) + 1 if checkpoint else 1,
        trainable_params=lora_init.trainable_params(trainer.model),
        recipe_digest=plan.recipe_digest(),
        backend=plan.execution_values().backend,
        device=plan.execution_values().device,
        resumed_from=str(checkpoint) if checkpoint else None,
        limits=trainer.execution.values(),
        best_lost=bool(trainer.job.best_checkpoint and trainer.job.best_checkpoint.lost),
    )


def _write_measured(trainer: Any, log: EventLog) -> None:
    """Write down what the run held and took, where it computed in one way throughout."""
    measured = trainer.execution.measured()
    if measured is not None:
        log.write(events.MeasuredEvent, stage="run", **measured)


def _sample(plan: RunPlan, trainer: Any, data: PreparedData, log: EventLog, step: int | None) -> None:
    """Answer the sample prompts, greedily, so that before and after differ by the training alone."""
    prompts = plan.run_values().sample_prompts
    if step is None or not prompts:
        return
    from qlora_core.inference.generate import Sampling, generate
    from qlora_core.memory.device_memory import autocast
    from qlora_core.memory.oom_retry import SAMPLE_WAYS

    log.phase("answering the sample prompts")
    greedy = Sampling(temperature=0.0, max_new_tokens=128)
    model = trainer.model
    model.eval()

    def answer() -> list[str]:
        with autocast(plan.execution_values()):
            return [generate(model, data.chat, data.prompt_ids(p), data.stop_ids, greedy) for p in prompts]

    try:
        answers = trainer.execution.run_beside_steps(answer, SAMPLE_WAYS)
    except EnvironmentProblem as problem:
        log.warn(f"the sample prompts are not answered: {problem.message}")
        return
    finally:
        model.train()
    log.write(events.SampleEvent, step=step, samples=tuple(map(_sampled, prompts, answers)))


def _sampled(prompt: str, answer: str) -> events.Sample:
    return events.Sample(prompt=prompt, answer=answer)


def _write_artifacts(
    planned: RunPlan, trainer: Any, data: PreparedData, log: EventLog, output: Path, check: EndCheck
) -> dict[str, str]:
    plan = trainer.job.plan
    check.trained(trainer)
    log.phase("writing the adapter" if plan.recipe_values().method != "full" else "writing the model")
    trained = save_trained(trainer.model, data.chat, plan, data.stop_ids, output, log.warn)
    config = artifacts.save_training_config(planned, ran_with(trainer), output)
    files = {trained.name: str(trained), run_folder.TRAINING_CONFIG: str(config)}
    if plan.run_values().merge and plan.recipe_values().method != "full":
        files[run_folder.MERGED_MODEL] = str(_merge(trainer, log, trained, output, plan, check))
    return files


def ran_with(trainer: Any) -> dict[str, Any]:
    """Every value of the execution as it runs now."""
    started = {name: resolved.value for name, resolved in trainer.job.plan.execution.items()}
    return started | dict(trainer.execution.values())


def _merge(trainer: Any, log: EventLog, adapter: Path, output: Path, plan: RunPlan, check: EndCheck) -> Path:
    from qlora_core.export.merge import merge
    from qlora_core.memory.device_memory import release
    from qlora_core.model.loading import local_model

    log.phase("merging")
    release(trainer)
    target = output / run_folder.MERGED_MODEL
    if target.exists():
        artifacts.remove_own(target)
    run = plan.run_values()
    base = local_model(plan.recipe_values(), run)
    loading: dict[str, Any] = {"cache": run.cache, "trust_remote_code": run.trust_remote_code}
    return merge(adapter, target, base, **loading, witness=check.witness(), warn=log.warn)


def _finish(
    log: EventLog,
    status: Any,
    code: int,
    step: int,
    start: float,
    files: dict[str, str],
    trainer: Any,
    message: str | None = None,
) -> None:
    log.done(
        status=status,
        exit_code=code,
        step=step,
        seconds=time.monotonic() - start,
        artifacts=files,
        message=message,
        vram_peak_bytes=trainer.job.memory.peak_bytes(),
    )
