"""The doctor's findings, worst first, and what can be trained."""

from collections.abc import Iterator, Sequence

from rich.text import Text

from qlora_run.doctor.diagnosis import Diagnosis, Finding, Verdict
from qlora_run.report.formatting import one_line
from qlora_run.terminal.cells import wrapped
from qlora_run.terminal.console import console_glyphs, make_console

STYLE: dict[Verdict, str] = {"ok": "green", "warn": "yellow", "note": "cyan", "fail": "bold red", "skipped": "dim"}
WORD: dict[Verdict, str] = {"ok": "ok", "warn": "warn", "note": "note", "fail": "FAIL", "skipped": "-"}
WORD_CELLS = 6
NARROWEST = 60


def print_diagnosis(diagnosis: Diagnosis, machine: str, seconds: float) -> None:
    """Print to standard output."""
    console = make_console()
    say, width = console_glyphs(console).say, max(console.width, NARROWEST)
    console.print(Text(say(f"qlora-run doctor: {one_line(machine)}   {seconds:.1f} s"), style="bold"))
    shown = [f for f in diagnosis.checks if _in_full(f)]
    id_cells = max((len(finding.id) for finding in shown), default=4) + 2
    for finding in shown:
        for line in _lines(finding, id_cells, width):
            console.print(Text(say(line.plain), spans=line.spans))
    for line in _in_brief(diagnosis.checks, width):
        console.print(Text(say(line.plain), spans=line.spans))
    for sentence in (diagnosis.summary, f"Next: {diagnosis.next}"):
        console.print(Text("\n".join(wrapped(say(one_line(sentence)), width)), style="bold"))


def _in_full(finding: Finding) -> bool:
    """Everything that is not well has lines of its own, and so has what people look for first."""
    return finding.verdict in ("fail", "warn", "note") or (finding.verdict == "ok" and not finding.minor)


def _lines(finding: Finding, id_cells: int, width: int) -> Iterator[Text]:
    """What was seen beside the verdict, below it what follows and the way on; a command is never broken."""
    indent = WORD_CELLS + id_cells
    seen = wrapped(one_line(finding.seen), width - indent)
    head = Text(f" {WORD[finding.verdict]:<{WORD_CELLS - 1}}", style=STYLE[finding.verdict])
    yield head.append(f"{finding.id:<{id_cells}}{seen[0]}", style="not bold default")
    for text in seen[1:]:
        yield Text(" " * indent + text)
    for text in wrapped(one_line(finding.consequence), width - indent) if finding.consequence else ():
        yield Text(" " * indent + text, style="dim")
    if finding.fix:
        yield Text(" " * indent + f"-> {one_line(finding.fix.say)}")


def _in_brief(findings: Sequence[Finding], width: int) -> Iterator[Text]:
    """The checks that are well, and those that were not made, by their names."""
    well = list(dict.fromkeys(f.id for f in findings if f.verdict == "ok" and f.minor))
    skipped = list(dict.fromkeys(f.id for f in findings if f.verdict == "skipped"))
    if well:
        yield from _named("ok", f"also: {', '.join(well)}", width)
    if skipped:
        yield from _named("skipped", f"not looked at: {', '.join(skipped)}", width)


def _named(verdict: Verdict, text: str, width: int) -> Iterator[Text]:
    lines = wrapped(text, width - WORD_CELLS)
    yield Text(f" {WORD[verdict]:<{WORD_CELLS - 1}}", style=STYLE[verdict]).append(lines[0], style="not bold default")
    for line in lines[1:]:
        yield Text(" " * WORD_CELLS + line)
