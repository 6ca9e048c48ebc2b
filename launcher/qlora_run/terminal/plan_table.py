"""The settings of a plan in columns: value, why, and where it comes from or what another value would do."""

from collections.abc import Iterator

from msgspec import Struct
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from qlora_profiles.plan import PERSON, Resolved, RunPlan
from qlora_profiles.registry import settings
from qlora_run.report.formatting import one_line, option, value_text
from qlora_run.terminal.cells import join_fitting
from qlora_run.terminal.glyphs import Glyphs

ALWAYS = ("device", "backend", "compute_dtype", "token_budget", "layers_recomputed", "attention")
"""Parts of the execution that a person asks for even when nothing is to be said about them."""
CUSTOMARY = ("examples_per_step", "epochs", "learning_rate", "lora_r")
"""Recipe settings named even when they stand at their defaults."""
IN_THE_HEAD = ("model", "data")
GAP = 2
"""Cells between columns."""


class Row(Struct, frozen=True, kw_only=True):
    """One setting as it is shown; ``aside`` is the last column."""

    name: str
    value: str
    why: str
    aside: str


class Section(Struct, frozen=True, kw_only=True):
    """One scope of the plan: rows that matter, and the others in brief."""

    title: str
    aside_title: str
    rows: tuple[Row, ...]
    brief_label: str = ""
    brief: tuple[str, ...] = ()


def sections(plan: RunPlan, glyphs: Glyphs, full: bool) -> list[Section]:
    """Recipe and execution; with ``full`` every setting of them, and those of the run too."""
    return [_recipe(plan, glyphs, full), _execution(plan, glyphs, full)] + ([_run(plan, glyphs)] if full else [])


def _recipe(plan: RunPlan, glyphs: Glyphs, full: bool) -> Section:
    shown = {n: r for n, r in plan.recipe.items() if full or not (_in_the_head(n, r) or _at_default(n, r))}
    others = [n for n in plan.recipe if n not in shown and n not in IN_THE_HEAD]
    brief = [_in_brief(plan, n, plan.recipe[n]) for n in CUSTOMARY if n in others]
    if len(others) > len(brief):
        brief.append(f"{len(others) - len(brief)} more (plan --full)")
    return Section(
        title="recipe (what is learned)",
        aside_title="from",
        rows=tuple(_row(plan, glyphs, n, r, r.source) for n, r in shown.items()),
        brief_label="default",
        brief=tuple(brief),
    )


def _in_the_head(name: str, resolved: Resolved) -> bool:
    """Whether the head says all there is to say: of a model that nobody named, why it is this one is missing."""
    return name in IN_THE_HEAD and not (name == "model" and resolved.source == "probe")


def _execution(plan: RunPlan, glyphs: Glyphs, full: bool) -> Section:
    shown = {n: r for n, r in plan.execution.items() if full or n in ALWAYS or r.if_changed or r.source in PERSON}
    return Section(
        title="execution (how this machine does it)",
        aside_title="if changed",
        rows=tuple(_row(plan, glyphs, n, r, _aside(r, full)) for n, r in shown.items()),
        brief_label="also",
        brief=tuple(
            _in_brief(plan, n, r) for n, r in plan.execution.items() if n not in shown and not _at_default(n, r)
        ),
    )


def _run(plan: RunPlan, glyphs: Glyphs) -> Section:
    rows = tuple(_row(plan, glyphs, n, r, r.source) for n, r in plan.run.items())
    return Section(title="run (where it goes)", aside_title="from", rows=rows)


def _aside(resolved: Resolved, full: bool) -> str:
    """What another value would do; else who decided, where somebody did."""
    if resolved.if_changed:
        return resolved.if_changed
    return f"from {resolved.source}" if full or resolved.source in PERSON else ""


def _at_default(name: str, resolved: Resolved) -> bool:
    known = settings().get(name)
    if resolved.source != "default" or known is None or known.tuned:
        return False
    value = tuple(resolved.value) if isinstance(resolved.value, list) else resolved.value
    return value in (known.default, ())  # an empty list says nothing


def _row(plan: RunPlan, glyphs: Glyphs, name: str, resolved: Resolved, aside: str) -> Row:
    value, why = setting_text(plan, name, resolved), one_line(resolved.reason)
    return Row(name=option(name), value=glyphs.spell(value), why=glyphs.spell(why), aside=glyphs.spell(one_line(aside)))


def _in_brief(plan: RunPlan, name: str, resolved: Resolved) -> str:
    return f"{option(name)} {setting_text(plan, name, resolved)}"


def setting_text(plan: RunPlan, name: str, resolved: Resolved) -> str:
    """A value as the plan shows it; layers out of how many."""
    text = one_line(value_text(name, resolved.value))
    return f"{text} of {plan.model.num_layers}" if name.startswith("layers_") else text


def section_view(section: Section, glyphs: Glyphs, width: int) -> Iterator[RenderableType]:
    """A section in ``width`` cells: heading, rows, and the others in brief."""
    widths = _widths(section, width)
    yield _heading(section, widths)
    yield _table(section, widths)
    lines = join_fitting(section.brief, ", ", width - len(_label("")))
    for number, line in enumerate(lines):
        yield Text(_label(section.brief_label if number == 0 else "") + glyphs.spell(line), style="dim")


def _label(text: str) -> str:
    return f"  {text:<9}"


def _widths(section: Section, width: int) -> tuple[int, int, int, int]:
    """Cells of the four columns; what names, values and the last column leave is for the reason."""
    name = _longest([row.name for row in section.rows], width // 3)
    value = _longest([row.value for row in section.rows], width // 5)
    aside = max(_longest([row.aside for row in section.rows], width // 4), len(section.aside_title))
    return name, value, max(width - name - value - aside - 4 * GAP, 8), aside


def _longest(texts: list[str], limit: int) -> int:
    from rich.cells import cell_len

    return min(max(map(cell_len, texts), default=0), limit)


def _heading(section: Section, widths: tuple[int, int, int, int]) -> Text:
    name, value, why, _ = widths
    before_why = GAP + name + GAP + value + GAP
    lead = section.title.ljust(before_why - GAP) + " " * GAP
    text = lead + "why" + " " * max(before_why + why + GAP - len(lead) - 3, GAP) + section.aside_title
    return Text(text, style="bold cyan", no_wrap=True, overflow="crop")


def _table(section: Section, widths: tuple[int, int, int, int]) -> RenderableType:
    styles = ("", "bold", "", "dim")
    columns = [Column(width=w, overflow="fold", style=s) for w, s in zip(widths, styles, strict=True)]
    table = Table(*columns, box=None, show_header=False, padding=(0, GAP, 0, 0), pad_edge=False)
    for row in section.rows:
        table.add_row(*(Text(cell) for cell in (row.name, row.value, row.why, row.aside)))
    return Padding(table, (0, 0, 0, GAP))
