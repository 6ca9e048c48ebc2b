"""Two plans side by side: what is learned differently, what is only computed differently."""

from pathlib import Path
from typing import Any

from qlora_profiles.errors import UserError
from qlora_profiles.plan import RunPlan, other_parts, plain, recipe_differences
from qlora_profiles.units import gib
from qlora_run.report.commands import on_run
from qlora_run.report.formatting import one_line, option, quoted, shown_path, time_range, value_text

NAMED = 3
"""Differences named in a refusal; a longer list belongs to ``plan --from``."""


def plan_changes(old: RunPlan, new: RunPlan) -> list[str]:
    """What ``new`` does otherwise than ``old``, a line each."""
    recipe = changes_of(recipe_differences(old, new))
    return [
        f"recipe: {'DIFFERENT, so something else is learned' if recipe else 'the same, so the same is learned'}",
        *_indented(recipe),
        *_block("execution", _execution(old, new)),
        *_block("machine", _machine(old, new)),
        *_prediction(old, new),
    ]


def mixing_error(
    old: RunPlan, new: RunPlan, output: str | Path, step: int, free_output: str | Path, finished: bool = False
) -> UserError:
    """Why a rerun into a folder with another recipe is refused, and both ways on.

    A run that finished cannot be gone on with: there the other way is to lose it. One whose base is another by now
    cannot either, until that is put back.
    """
    changes = changes_of(recipe_differences(old, new))
    named = ", ".join(changes[:NAMED]) + (f" and {len(changes) - NAMED} more" if len(changes) > NAMED else "")
    elsewhere = f"--output {quoted(shown_path(free_output))}"
    same_place = Path(old.recipe["model"].value).absolute() == Path(new.recipe["model"].value).absolute()
    if same_place and other_parts(old.base_parts(), new.base_parts()):
        resumed = f"put the base back as it was   or   {elsewhere}"
    else:
        resumed = f"{on_run('resume', output)} (old settings)   or   {elsewhere}"
    return UserError(
        f"{shown_path(output)} {'finished' if finished else 'stopped'} at step {step}. "
        f"Changed since: {named}. Refusing to mix.",
        f"{elsewhere}   or   --overwrite to lose the old run" if finished else resumed,
    )


def changes_of(differences: list[tuple[str, Any, Any]]) -> list[str]:
    """Differences of recipes in words, one each."""
    return [_change(*difference) for difference in differences]


def _change(name: str, old: Any, new: Any) -> str:
    before, after = one_line(value_text(name, old)), one_line(value_text(name, new))
    if before == after:  # a path by the same name, with other content
        return f"{option(name)} (other content in {after})"
    return f"{option(name)} {before} -> {after}"


def _execution(old: RunPlan, new: RunPlan) -> list[str]:
    pairs = [(n, old.execution[n].value, r.value) for n, r in new.execution.items() if n in old.execution]
    return [_change(*pair) for pair in pairs if plain(pair[1]) != plain(pair[2])]


def _machine(old: RunPlan, new: RunPlan) -> list[str]:
    before, after = _describe(old), _describe(new)
    return [f"{before} -> {after}"] if before != after else []


def _describe(plan: RunPlan) -> str:
    seen = (*plan.cards(), *plan.report.gpus)
    card = seen[0].name if seen else "no GPU"
    return f"{plan.report.name}, {card}, torch {plan.report.torch.version or 'unknown'}"


def _block(title: str, lines: list[str]) -> list[str]:
    return [f"{title}:", *_indented(lines)] if lines else [f"{title}: the same"]


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _prediction(old: RunPlan, new: RunPlan) -> list[str]:
    spans = [time_range(p.time.seconds_low, p.time.seconds_high) for p in (old, new)]
    peaks = [gib(p.memory.peak_bytes) for p in (old, new)]
    return [f"peak {peaks[0]} -> {peaks[1]} GiB   time {spans[0]} -> {spans[1]}"]
