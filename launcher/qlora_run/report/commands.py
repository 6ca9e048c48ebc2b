"""Commands as they are typed, for a person to copy."""

from pathlib import Path
from typing import Any

from qlora_profiles.plan import RunPlan
from qlora_profiles.registry import lookup
from qlora_run.report.formatting import option, quoted, shown_path

NAMED_FIRST = ("model", "data")
_AS_TYPED: dict[Any, str] = {None: "auto", True: "true", False: "false"}


def on_run(verb: str, output: str | Path) -> str:
    """``qlora-run VERB FOLDER`` for the folder of a run: resume, chat, merge, replay."""
    return f"qlora-run {verb} {quoted(shown_path(output))}"


def start_command(plan: RunPlan) -> str:
    """What starts this plan: everything that somebody decided, as options."""
    every = {**plan.recipe, **plan.execution, **plan.run}
    words = ["qlora-run", "--auto"] + (["--recipe", plan.recipe_name] if plan.recipe_name else [])
    words += ["--profile", plan.profile] if plan.profile else []
    for name in dict.fromkeys((*NAMED_FIRST, *every)):
        if every[name].source == "recipe":
            continue
        if name in NAMED_FIRST or every[name].source in ("config", "cli"):
            words += _option_words(name, every[name].value)
    return " ".join(quoted(word) for word in words)


def _option_words(name: str, value: Any) -> list[str]:
    flag = f"--{option(name)}"
    if lookup(name).doc.sentences:
        return [word for entry in value for word in (flag, str(entry))]
    if isinstance(value, list | tuple):
        return [flag, ",".join(str(v) for v in value)]
    return [flag, _AS_TYPED[value] if value is None or isinstance(value, bool) else str(value)]
