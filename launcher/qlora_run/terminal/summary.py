"""How a run ended, and the commands that make sense next."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from qlora_profiles import run_folder
from qlora_profiles.errors import QloraRunError
from qlora_profiles.plan import RunPlan
from qlora_profiles.units import human_bytes, human_seconds
from qlora_run.report.commands import on_run, start_command
from qlora_run.report.formatting import one_line, option, shown_path, time_range, value_text
from qlora_run.report.lines import peak_text, val_text
from qlora_run.report.run_state import RunState
from qlora_run.report.verdict import Verdict, row_changes, verdict_of
from qlora_run.terminal.cells import fit, join_fitting
from qlora_run.terminal.console import console_glyphs, print_error
from qlora_run.terminal.glyphs import Glyphs

LABELS = {
    run_folder.ADAPTER: "adapter",
    run_folder.MERGED_MODEL: "model",
    run_folder.TRAINING_CONFIG: "settings",
}
MAX_SAMPLES = 3
"""Sample prompts that are shown with their answers."""
LABEL_CELLS = 9
PAST_BEST = 0.02
"""A last held-out loss so much above the best one (a share of it) is worth a word; set by hand."""


def print_closing(
    console: Console, state: RunState, plan: RunPlan, output: Path, problem: QloraRunError | None
) -> None:
    """The summary of a run that ended by itself or on request; otherwise the problem, to standard error."""
    for line in closing_lines(state, plan, output, console_glyphs(console), console.width):
        console.print(line)
    console.file.flush()
    if problem:
        print_error(problem)


def closing_lines(state: RunState, plan: RunPlan, output: Path, glyphs: Glyphs, width: int) -> list[Text]:
    """The closing summary; empty for a run that failed or died."""
    if state.done is None or state.done.status == "failed":
        return []
    if state.done.status == "interrupted":
        return [Text(glyphs.spell(line)) for line in _interrupted(state, plan, output, width)]
    return [Text(glyphs.spell(line), style=style) for line, style in _finished(state, plan, output, width)]


def _interrupted(state: RunState, plan: RunPlan, output: Path, width: int) -> list[str]:
    saved = state.checkpoint
    if saved is None:
        return ["Stopped. Nothing was saved yet.", f"Again: {start_command(plan)}"]
    lost = "nothing lost" if saved.step >= state.step else "what came after it is lost"
    parts = (f"Stopped. Saved step {saved.step}, {lost}.", f"Continue: {on_run('resume', output)}")
    return [*join_fitting(parts, "    ", width), *_ran_otherwise(state, plan, width)]


def _finished(state: RunState, plan: RunPlan, output: Path, width: int) -> Iterator[tuple[str, str]]:
    verdict = verdict_of(state, plan)
    failed = verdict.outcome == "not learned"
    if failed:
        yield from ((line, "bold red") for line in _not_learned(verdict))
    planned = time_range(plan.time.seconds_low, plan.time.seconds_high)
    peak = peak_text(state, plan)
    yield f"Done in {human_seconds(state.elapsed_seconds())} (plan {planned})" + (f" · peak {peak}" if peak else ""), ""
    yield from ((line, "") for line in _ran_otherwise(state, plan, width))
    yield from ((line, "bold green" if verdict.outcome == "learned" else "") for line in _losses(state, plan, verdict))
    yield from ((line, "") for line in _artifacts(state))
    if state.read_back:
        yield _labelled("checked", one_line(state.read_back.words)), ""
    yield from ((line, "") for line in _samples(state, width))
    yield from ((line, "bold") for line in _next(state, plan, output, failed))


def _ran_otherwise(state: RunState, plan: RunPlan, width: int) -> list[str]:
    """What of the execution ran at the end, where the plan had something else."""
    ran = state.done.limits if state.done else {}
    parts = [
        f"{option(name)} {value_text(name, value)} (plan {value_text(name, plan.execution[name].value)})"
        for name, value in ran.items()
        if name in plan.execution and plan.execution[name].value != value
    ]
    return join_fitting([f"Ran at the end with {parts[0]}", *parts[1:]], ", ", width) if parts else []


def _not_learned(verdict: Verdict) -> list[str]:
    lines = [f"NOT LEARNED: {verdict.evidence}", f"  likely because {verdict.cause}"]
    return [*lines, f"  -> {verdict.fix}"] if verdict.fix else lines


def _losses(state: RunState, plan: RunPlan, verdict: Verdict) -> Iterator[str]:
    if verdict.outcome == "unclear":
        yield f"Cannot tell whether it learned: {verdict.evidence}"
    elif verdict.outcome == "fitted":
        yield f"Its own rows fit better: {verdict.evidence}; none was held out to tell whether others do (--val-size)"
    elif verdict.outcome == "learned":
        yield f"Learned: {val_text(state) if len(state.evals) > 1 else verdict.evidence}"
    if verdict.outcome == "learned" and state.best and state.evals[-1].loss > state.best.loss * (1 + PAST_BEST):
        yield f"It was better at step {state.best.step}: fewer --epochs may do"
    rows = row_changes(state, plan)
    if rows:
        changes = f"{rows.better} better, {rows.equal} equal, {rows.worse} worse"
        yield f"{rows.rows} unseen rows: {changes} than before training"


def _artifacts(state: RunState) -> Iterator[str]:
    for name, path in (state.done.artifacts if state.done else {}).items():
        size = _size_bytes(Path(path))
        yield _labelled(LABELS.get(name, name), shown_path(path) + (f" ({human_bytes(size)})" if size else ""))


def _size_bytes(path: Path) -> int:
    """Size of a file, or of all files in a folder; 0 when there is none."""
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def _samples(state: RunState, width: int) -> Iterator[str]:
    """What the same prompts were answered before and after."""
    before, now = state.sample_before, state.sample_now
    if before is None or now is None:
        return
    for old, new in list(zip(before.samples, now.samples, strict=False))[:MAX_SAMPLES]:
        yield fit(_labelled("sample", one_line(old.prompt)), width)
        yield fit(_labelled("", f"before: {one_line(old.answer)}"), width)
        yield fit(_labelled("", f"now:    {one_line(new.answer)}"), width)


def _next(state: RunState, plan: RunPlan, output: Path, failed: bool) -> Iterator[str]:
    if not failed:
        yield _labelled("chat", on_run("chat", output))
        merged = run_folder.MERGED_MODEL in (state.done.artifacts if state.done else {})
        if not merged and plan.recipe_values().method != "full":
            yield _labelled("merge", on_run("merge", output))
    yield _labelled("again", on_run("replay", output))


def _labelled(label: str, text: str) -> str:
    return f"{label:<{LABEL_CELLS}}{text}"
