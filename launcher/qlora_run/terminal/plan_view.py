"""A plan as a person reads it: does it fit, what is learned, how this machine does it, how long it takes."""

import io
from collections import Counter
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.text import Text

from qlora_profiles.facts import DataFacts, ModelFacts
from qlora_profiles.plan import RunPlan
from qlora_profiles.units import human_seconds
from qlora_run.report.commands import start_command
from qlora_run.report.formatting import in_unit, one_line, shown_path, size_unit, time_range
from qlora_run.terminal.cells import join_fitting, wrapped
from qlora_run.terminal.console import console_glyphs
from qlora_run.terminal.glyphs import ASCII, UNICODE, Glyphs
from qlora_run.terminal.plan_table import section_view, sections

TOO_SLOW_SECONDS = 24 * 3600
"""A run on the CPU that takes longer is advised against; set by hand."""
NARROWEST = 60
"""Terminal cells of the narrowest screen that is drawn for."""


def plan_text(plan: RunPlan, width: int = 80, ascii: bool = False, full: bool = False) -> str:
    """The plan in lines of at most ``width`` cells, without colour; ``full`` shows every setting."""
    width = max(width, NARROWEST)
    return as_text(Group(plan_view(plan, ASCII if ascii else UNICODE, width, full), _run_line(plan)), width)


def print_plan(plan: RunPlan, console: Console, full: bool = False) -> None:
    """The plan on a console, coloured where it can be; its command stays one line, to be copied whole."""
    width = max(console.width, NARROWEST)
    console.print(plan_view(plan, console_glyphs(console), width, full), soft_wrap=False)
    console.print(_run_line(plan))


def as_text(view: RenderableType, width: int) -> str:
    """A rich view as plain lines of at most ``width`` cells."""
    paper = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with paper.capture() as capture:
        paper.print(view)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def plan_view(plan: RunPlan, glyphs: Glyphs, width: int, full: bool = False) -> Group:
    """The plan but for its command, as rich renderables for a console of ``width`` cells."""
    parts: list[RenderableType] = [*_head(plan, glyphs, width, full), *_memory(plan, glyphs, width)]
    for section in sections(plan, glyphs, full):
        parts += [Text(), *section_view(section, glyphs, width)]
    return Group(*parts, *_notes(plan, glyphs, width), Text(), *_closing(plan, glyphs, width))


def _head(plan: RunPlan, glyphs: Glyphs, width: int, full: bool) -> Iterator[Text]:
    named = {"recipe": plan.recipe_name, "profile": plan.profile}
    prepared = [f"{kind} {name}" for kind, name in named.items() if name]
    names = [plan.model.name, ", ".join(shown_path(source.path) for source in plan.data.sources), *prepared]
    yield from _lines(glyphs.spell(" · ".join(map(one_line, names))), width, "bold")
    yield from _lines(", ".join(_data_facts(plan.data)), width)
    if plan.data.learned:
        share = plan.data.mean_supervised_tokens / plan.data.mean_tokens
        yield from _hanging(
            "template  ", glyphs.spell(f"{one_line(plan.data.learned)}, {share:.0%} of tokens"), width, ""
        )
    for warning in plan.data.warnings:
        yield from _hanging("WARNING  ", glyphs.spell(one_line(warning)), width, "bold red")
    if full and len(plan.model.layers) > 1:
        yield from _lines(f"{plan.model.num_layers} layers: {', '.join(_layer_groups(plan.model))}", width)


def _layer_groups(model: ModelFacts) -> list[str]:
    """``18 sliding attention``; with the size of a layer where several groups are of one kind."""
    kinds = Counter(group.kind for group in model.layers)
    return [
        f"{group.count} {group.kind}" + (f" of {group.params / 1e6:,.1f}M" if kinds[group.kind] > 1 else "")
        for group in model.layers
    ]


def _data_facts(data: DataFacts) -> list[str]:
    about = "" if data.exact else "about "
    roughly = "about " if data.counted_rows and data.rows_cut else ""
    cut = f"{roughly}{data.rows_cut:,} cut"
    rows = "1 row" if data.rows == 1 else f"{data.rows:,} rows"
    facts = [f"{about}{rows}", f"longest {about}{data.longest_tokens:,} tokens", cut]
    if data.rows_rejected:
        facts.append(f"{data.rows_rejected:,} damaged and set aside")
    if data.rows_dropped:
        facts.append(f"{data.rows_dropped:,} dropped: nothing to learn was left")
    return [*facts, "stop token trained" if data.stop_token else "NO stop token: answers will not end"]


def _memory(plan: RunPlan, glyphs: Glyphs, width: int) -> Iterator[Text]:
    yield Text()
    memory = plan.memory
    style = "bold green" if memory.fits else "bold yellow" if memory.close else "bold red"
    yield from _lines(glyphs.spell(_verdict(plan, glyphs)), width, style)
    unit, _ = size_unit(memory.budget_bytes or memory.peak_bytes)
    parts = [f"{p.name} {in_unit(p.bytes, unit)}" for p in memory.parts if p.bytes * 20 >= unit]
    yield from (Text(glyphs.spell(line), style="dim") for line in join_fitting(parts, " | ", width, "  "))


def _verdict(plan: RunPlan, glyphs: Glyphs) -> str:
    memory, kind = plan.memory, memory_kind(plan)
    unit, name = size_unit(memory.budget_bytes or memory.peak_bytes)
    peak, known = in_unit(memory.peak_bytes, unit), ", calibrated on this card" if memory.calibrated else ""
    error = f"(±{in_unit(memory.error_bytes, unit)}{known})"
    if memory.budget_bytes is None:
        free = plan.report.memory.ram_available_bytes if kind == "memory" else None
        return f"NEEDS  {peak} {name} of {kind} {error}" + (f", {in_unit(free, unit)} free" if free else "")
    spare = memory.budget_bytes - memory.peak_bytes
    bar = f"[{glyphs.bar(memory.peak_bytes / memory.budget_bytes, 20 if memory.fits else 14)}]"
    size = in_unit(abs(spare), unit)
    left = f"{size} too much" if spare < 0 else f"{size} spare" if memory.fits else f"only {size} spare"
    of = f"{peak} of {in_unit(memory.budget_bytes, unit)} {name} {kind}"
    word = "FITS" if memory.fits else "CLOSE" if memory.close else "DOES NOT FIT"
    return f"{word}  {of}  {bar}  {left} {error}"


def memory_kind(plan: RunPlan) -> str:
    """What the memory of the plan's device is called."""
    return "VRAM" if plan.execution["device"].value == "cuda" else "memory"


def _notes(plan: RunPlan, glyphs: Glyphs, width: int) -> list[Text]:
    notes = (*plan.notes, *plan.data.notes)
    lines = [line for note in notes for line in _hanging("note  ", glyphs.spell(one_line(note)), width, "yellow")]
    return [Text(), *lines] if lines else []


def _closing(plan: RunPlan, glyphs: Glyphs, width: int) -> Iterator[Text]:
    if plan.runner_up:
        yield from _lines(glyphs.spell(f"Runner-up: {plan.runner_up}"), width, "dim")
    yield from _lines(glyphs.spell(_time_line(plan)), width)
    yield from _lines(f"Writes to {one_line(shown_path(str(plan.run['output'].value)))}", width)


def _time_line(plan: RunPlan) -> str:
    time = plan.time
    span = f"Time {time_range(time.seconds_low, time.seconds_high)} for {time.steps:,} steps ({time.basis})."
    if plan.execution["device"].value != "cpu":
        return span
    if time.seconds_high < TOO_SLOW_SECONDS:
        return f"CPU only. {span}"
    return f"CPU only: this would take about {human_seconds(time.seconds_high)}; use a GPU. {span}"


def _run_line(plan: RunPlan) -> Text:
    if plan.memory.fits or plan.memory.close:
        return Text("Run: ").append(start_command(plan), style="bold")
    fix = "-> a smaller --max-length, or --allow-recipe-change to take the nearest recipe that fits"
    return Text(fix, style="bold")


def _hanging(label: str, text: str, width: int, style: str) -> list[Text]:
    """``text`` behind its label, further lines below the text."""
    first, *rest = wrapped(text, width - len(label)) or [""]
    return [Text(line, style=style) for line in (label + first, *(" " * len(label) + line for line in rest))]


def _lines(text: str, width: int, style: str = "") -> list[Text]:
    return [Text(line, style=style) for line in wrapped(text, width)]
