"""The doctor's results, worst first, and what can be trained."""

from collections.abc import Iterator, Sequence

from rich.text import Text

from qlora_run.doctor.diagnosis import CheckResult, Diagnosis, Verdict
from qlora_run.report.formatting import one_line
from qlora_run.terminal.cells import wrapped
from qlora_run.terminal.console import console_glyphs, make_console

STYLE: dict[Verdict, str] = {"ok": "green", "warn": "yellow", "note": "cyan", "fail": "bold red", "skipped": "dim"}
WORD: dict[Verdict, str] = {"ok": "ok", "warn": "warn", "note": "note", "fail": "FAIL", "skipped": "-"}
WORD_CELLS = 6
NARROWEST = 60
"""Terminal cells: of the column of verdicts, and of the narrowest screen that is drawn for."""


def print_diagnosis(diagnosis: Diagnosis, machine: str, seconds: float) -> None:
    """Print to standard output; ``seconds`` is how long the examination took."""
    console = make_console()
    spell, width = console_glyphs(console).spell, max(console.width, NARROWEST)
    console.print(Text(spell(f"qlora-run doctor: {one_line(machine)}   {seconds:.1f} s"), style="bold"))
    shown = [f for f in diagnosis.checks if _in_full(f)]
    id_cells = max((len(result.id) for result in shown), default=4) + 2
    for result in shown:
        for line in _lines(result, id_cells, width):
            console.print(Text(spell(line.plain), spans=line.spans))
    for line in _in_brief(diagnosis.checks, width):
        console.print(Text(spell(line.plain), spans=line.spans))
    for sentence in (diagnosis.summary, f"Next: {diagnosis.next}"):
        console.print(Text("\n".join(wrapped(spell(one_line(sentence)), width)), style="bold"))


def _in_full(result: CheckResult) -> bool:
    """Everything that is not well has lines of its own, and so has what people look for first."""
    return result.verdict in ("fail", "warn", "note") or (result.verdict == "ok" and not result.minor)


def _lines(result: CheckResult, id_cells: int, width: int) -> Iterator[Text]:
    """What was seen beside the verdict, below it what follows and the way on; a command is never broken."""
    indent = WORD_CELLS + id_cells
    seen = wrapped(one_line(result.seen), width - indent)
    head = Text(f" {WORD[result.verdict]:<{WORD_CELLS - 1}}", style=STYLE[result.verdict])
    yield head.append(f"{result.id:<{id_cells}}{seen[0]}", style="not bold default")
    for text in seen[1:]:
        yield Text(" " * indent + text)
    for text in wrapped(one_line(result.consequence), width - indent) if result.consequence else ():
        yield Text(" " * indent + text, style="dim")
    if result.fix:
        yield Text(" " * indent + f"-> {one_line(result.fix.say)}")


def _in_brief(results: Sequence[CheckResult], width: int) -> Iterator[Text]:
    """The checks that are well, and those that were not made, by their names."""
    well = list(dict.fromkeys(f.id for f in results if f.verdict == "ok" and f.minor))
    skipped = list(dict.fromkeys(f.id for f in results if f.verdict == "skipped"))
    if well:
        yield from _named("ok", f"also: {', '.join(well)}", width)
    if skipped:
        yield from _named("skipped", f"not looked at: {', '.join(skipped)}", width)


def _named(verdict: Verdict, text: str, width: int) -> Iterator[Text]:
    lines = wrapped(text, width - WORD_CELLS)
    yield Text(f" {WORD[verdict]:<{WORD_CELLS - 1}}", style=STYLE[verdict]).append(lines[0], style="not bold default")
    for line in lines[1:]:
        yield Text(" " * WORD_CELLS + line)
