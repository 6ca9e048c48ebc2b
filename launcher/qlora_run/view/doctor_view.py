"""The doctor's findings, worst first, and what can be trained."""

from collections.abc import Iterator

from rich.text import Text

from qlora_run.doctor.findings import Diagnosis, Finding, Verdict
from qlora_run.view.console import console_glyphs, make_console
from qlora_run.view.words import one_line, wrapped

STYLE: dict[Verdict, str] = {"ok": "green", "slow": "yellow", "note": "cyan", "fail": "bold red"}
WORD: dict[Verdict, str] = {"ok": "ok", "slow": "slow", "note": "note", "fail": "FAIL"}
WORD_CELLS = 6
NARROWEST = 60


def print_diagnosis(diagnosis: Diagnosis, machine: str, seconds: float) -> None:
    """Print to standard output."""
    console = make_console()
    say, width = console_glyphs(console).say, max(console.width, NARROWEST)
    console.print(Text(say(f"qlora-run doctor: {one_line(machine)}   {seconds:.1f} s"), style="bold"))
    id_cells = max(len(finding.id) for finding in diagnosis.checks) + 2
    for finding in diagnosis.checks:
        for line in _lines(finding, id_cells, width):
            console.print(Text(say(line.plain), spans=line.spans))
    for sentence in say(diagnosis.summary).splitlines():
        console.print(Text("\n".join(wrapped(sentence, width)), style="bold"))


def _lines(finding: Finding, id_cells: int, width: int) -> Iterator[Text]:
    """What was seen beside the verdict, and below it the way on; a command is never broken."""
    indent = WORD_CELLS + id_cells
    seen = wrapped(one_line(finding.seen), width - indent)
    head = Text(f" {WORD[finding.verdict]:<{WORD_CELLS - 1}}", style=STYLE[finding.verdict])
    yield head.append(f"{finding.id:<{id_cells}}{seen[0]}", style="not bold default")
    for text in seen[1:]:
        yield Text(" " * indent + text)
    if finding.fix:
        yield Text(" " * indent + f"-> {one_line(finding.fix)}")
