"""``data``: what would be learned of the rows, before any training; and any readable data as JSONL of messages."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_profiles.durable import write_whole
from qlora_profiles.errors import EnvironmentProblem, UserError
from qlora_profiles.plan import Request
from qlora_run.cli.commands import Command
from qlora_run.commands.json_output import print_json
from qlora_run.commands.plan_input import plan_input
from qlora_run.report.formatting import quoted, shown_path

if TYPE_CHECKING:
    from qlora_core.data import Inspection

ROWS_SHOWN = 4
SUFFIXES = {"write": (".jsonl",), "html": (".html", ".htm")}


def run(command: Command) -> int:
    """Show the rows, write the page, or write the rows as messages.

    Raises:
        UserError: data or a tokenizer cannot be read, nothing would be learned, or a file is there already.
        EnvironmentProblem: a file cannot be written.
    """
    from qlora_run.fetch import bring_hub_sets
    from qlora_run.planner.make_plan import check_data_named, data_recipe

    options = command.options
    request = plan_input(command, only_planning=True).request
    check_data_named(request)
    targets = {name: _free(name, options[name], request) for name in SUFFIXES if options[name]}
    bring_hub_sets(data_recipe(request)[0])
    if "write" in targets:
        _write_rows(request, targets["write"], quiet=options["json"])
        if not (options["json"] or options["html"]):
            return 0
    found = _inspected(request, ROWS_SHOWN if options["rows"] is None else options["rows"])
    if "html" in targets:
        _write_page(found, targets["html"])
    _show(found, request, as_json=options["json"])
    if "html" in targets:
        print(f"Page: {shown_path(targets['html'])}", file=sys.stderr if options["json"] else sys.stdout)
    return 0


def _inspected(request: Request, rows: int) -> "Inspection":
    """The data through the tokenizer of the model that was named, or as messages where none was."""
    from qlora_core.data import inspect_messages, inspect_rows
    from qlora_run.model_facts import read_model_facts
    from qlora_run.planner.make_plan import data_recipe

    if "model" not in request.given:
        return inspect_messages(data_recipe(request)[0], rows)
    named = {name: request.value(name) for name in ("cache", "local_dir")}
    paths = {name: Path(text).expanduser() if text else None for name, text in named.items()}
    model = read_model_facts(request.value("model"), **paths, revision=request.value("revision"), allow_known=True)
    recipe, run_settings = data_recipe(request, model)
    return inspect_rows(recipe, run_settings, rows, embedding_rows=model.vocab_size)


def _show(found: "Inspection", request: Request, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    from qlora_run.terminal.console import make_console
    from qlora_run.terminal.data_view import print_inspection

    console = make_console()
    print_inspection(found, console)
    data = " ".join(f"--data {quoted(str(source))}" for source in request.value("data", ()))
    model = quoted(found.model) if found.model else "MODEL"
    console.print(f"\nNext: qlora-run {'plan' if found.model else 'data'} --model {model} {data}".rstrip())


def _write_rows(request: Request, target: Path, *, quiet: bool) -> None:
    from qlora_core.data import jsonl, read_all
    from qlora_run.planner.make_plan import data_recipe

    dataset = read_all(data_recipe(request)[0])
    _write(target, "".join(jsonl(dataset.conversations)))
    aside = f", {len(dataset.rejected):,} damaged ones left out" if dataset.rejected else ""
    said = f"{shown_path(target)}: {len(dataset.conversations):,} rows written as messages{aside}"
    print(said, file=sys.stderr if quiet else sys.stdout)


def _write_page(found: "Inspection", target: Path) -> None:
    from qlora_run.report.data_page import data_page

    _write(target, data_page(found))


def _free(name: str, given: str, request: Request) -> Path:
    """Where to write, which is checked before anything is read.

    Raises:
        UserError: another suffix, no such folder, something is there already, or it is the data itself.
    """
    target = Path(given).expanduser()
    wanted = SUFFIXES[name]
    if target.suffix.lower() not in wanted:
        raise UserError(f"--{name} {given}: want a name that ends in {wanted[0]}", f"--{name} {target.stem}{wanted[0]}")
    if not target.absolute().parent.is_dir():
        raise UserError(f"--{name} {given}: there is no folder {target.parent}", "make it, or another name")
    if target.exists() and any(target.samefile(file) for file in _files_of(request)):
        raise UserError(f"--{name} {given}: that is the data itself", "another name")
    if target.is_dir():
        raise UserError(f"--{name} {given}: that is a folder", f"--{name} {quoted(str(target / ('data' + wanted[0])))}")
    if target.exists() and not request.value("overwrite", False):
        raise UserError(f"--{name} {given}: there is such a file already", "another name, or --overwrite")
    return target


def _files_of(request: Request) -> Iterator[Path]:
    """The files on this disk that the data is read from."""
    from qlora_core.data.sources.located import locate
    from qlora_core.data.sources.stored import Wanted
    from qlora_profiles.data_source import parse_source

    for source in map(parse_source, request.value("data", ())):
        if not source.hub:
            yield from (file.path for file in locate(source, Wanted()).files)


def _write(target: Path, text: str) -> None:
    try:
        write_whole(target, text)
    except OSError as error:
        raise EnvironmentProblem(f"{target}: {error.strerror or error}", "a file in another folder") from error
