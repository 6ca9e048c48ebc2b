"""What ``profiles`` and ``recipes`` have in common: the catalogue, one of it whole, and keeping a plan as one."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from qlora_profiles.errors import UserError
from qlora_profiles.own_files import Kind, own_folder, own_names
from qlora_profiles.plan import RunPlan
from qlora_profiles.visible import visible
from qlora_run.cli.commands import Command
from qlora_run.commands.json_output import print_json


class Named(Protocol):
    """A profile or a recipe."""

    @property
    def name(self) -> str:
        """What it is called."""


N = TypeVar("N", bound=Named)


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue(Generic[N]):
    """The shipped ones (``names``) and a person's own.

    ``whole`` is one in full, ``lines`` each in short, ``keep`` saves what a plan holds of it under a name, ``uses`` is
    how the command line takes one, and ``more`` what the list says of that.
    """

    kind: Kind
    names: Callable[[], Sequence[str]]
    load: Callable[[str], N]
    whole: Callable[[N], str]
    lines: Callable[[Iterable[N]], Iterator[str]]
    keep: Callable[[RunPlan, str, bool], Path]
    uses: str
    more: str

    def run(self, command: Command) -> int:
        """List them, show one, or save one.

        Raises:
            UserError: no such one, none to save from, or one of this name is there and ``--yes`` was not given.
        """
        options: dict[str, Any] = command.options
        if options["save"]:
            return self._save(options["save"], options["from"], replace=options["yes"])
        if options["show"]:
            found = self.load(options["show"])
            print_json(found) if options["json"] else print(self.whole(found))
            return 0
        readable, problems = self._all()
        print_json(readable) if options["json"] else self._list(readable, problems)
        return 0

    def _all(self) -> tuple[list[N], list[str]]:
        """All that can be read, and what is wrong with the others: one mistake must not hide the rest."""
        readable, problems = [], []
        for name in (*self.names(), *own_names(self.kind)):
            try:
                readable.append(self.load(name))
            except UserError as error:
                problems.append(str(error))
        return readable, problems

    def _list(self, found: list[N], problems: list[str]) -> None:
        shipped = [each for each in found if each.name in self.names()]
        own = [each for each in found if each not in shipped]
        print("\n".join(self.lines(shipped)))
        if own or problems:
            print(f"\nyours, in {own_folder(self.kind)}")
            print(visible("\n".join([*self.lines(own), *problems])))
        print(f"\nqlora-run {self.kind}s show NAME     qlora-run {self.uses.format('NAME')}{self.more}")
        print(f"qlora-run {self.kind}s save NAME --from FOLDER-OF-A-RUN")

    def _save(self, name: str, source: str | None, *, replace: bool) -> int:
        """Keep the plan of a run. Raises UserError where no plan was named."""
        from qlora_run.runs.replay import plan_of

        if source is None:
            fix = f"qlora-run {self.kind}s save {name} --from FOLDER-OF-A-RUN"
            raise UserError(f"{self.kind}s save needs a plan", fix)
        path = self.keep(plan_of(Path(source))[0], name, replace)
        print(visible(f"saved: {path}") + f"\nNext: qlora-run {self.uses.format(name)}")
        return 0
