"""The commands and the options that are no settings: one table each, from which parser and help are made."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from qlora_profiles.alias import Where
from qlora_profiles.registry import Setting
from qlora_profiles.settings import Doc, Scope


class Command(Struct, frozen=True, kw_only=True):
    """What was written on the command line, sorted but not yet resolved.

    Attributes:
        options: every option of the command that is no setting, typed; what was not given has its default.
        given_options: the names of those that were given.
        raw_settings: settings as written, (``"--num_train_epochs"``, ``"3"``), in their order.
    """

    name: str
    options: dict[str, Any] = {}
    given_options: tuple[str, ...] = ()
    raw_settings: tuple[tuple[str, str], ...] = ()


class CommandSpec(Struct, frozen=True, kw_only=True):
    """One command: its name, which settings it takes, and what its help says.

    ``where`` says which table of foreign names holds (``qlora_profiles.aliases``).
    """

    name: str
    about: str
    usage: str = ""
    where: Where = "train"
    scopes: tuple[Scope, ...] = ()


ALL_SCOPES: tuple[Scope, ...] = ("recipe", "execution", "run")
KEPT_SCOPES: tuple[Scope, ...] = ("execution", "run")

_COMMANDS = (
    CommandSpec(
        name="train",
        about="plan and train; the name may be left out",
        usage="--auto --model MODEL --data FILE [settings]",
        scopes=ALL_SCOPES,
    ),
    CommandSpec(
        name="demo",
        about="a tiny model learns a small job here, without a download",
        usage="[settings]",
        scopes=ALL_SCOPES,
    ),
    CommandSpec(
        name="doctor",
        about="what this machine can train, and what stands in the way",
        usage="[settings]",
        scopes=ALL_SCOPES,
    ),
    CommandSpec(
        name="plan",
        about="what a run would do and why, without training",
        usage="--model MODEL --data FILE [settings]",
        scopes=ALL_SCOPES,
    ),
    CommandSpec(
        name="data",
        about="what would be learned of the rows, shown before any training",
        usage="[--model MODEL] --data FILE [settings]",
        scopes=ALL_SCOPES,
    ),
    CommandSpec(
        name="profiles",
        about="the prepared profiles and your own; show or save one",
        usage="[show NAME | save NAME --from FOLDER]",
    ),
    CommandSpec(
        name="recipes",
        about="prepared recipes (what is learned) and your own; show or save one",
        usage="[list | show NAME | save NAME --from FOLDER]",
    ),
    CommandSpec(
        name="resume",
        about="go on with a run that was stopped",
        usage="FOLDER [execution and run settings]",
        scopes=KEPT_SCOPES,
    ),
    CommandSpec(
        name="replay",
        about="the same run again, from its plan.json",
        usage="FOLDER [execution and run settings]",
        scopes=KEPT_SCOPES,
    ),
    CommandSpec(name="chat", about="talk to what was trained", usage="[FOLDER]", where="infer"),
    CommandSpec(name="infer", about="answer one prompt", usage="[FOLDER] --prompt TEXT", where="infer"),
    CommandSpec(
        name="merge", about="one model of base and adapter, in a folder", usage="FOLDER [-o OUTPUT]", where="merge"
    ),
    CommandSpec(name="help", about="this help, or what is asked for", usage="[SETTINGS | GROUP | NAME | COMMAND]"),
    CommandSpec(name="version", about="the installed version"),
)
COMMANDS: dict[str, CommandSpec] = {spec.name: spec for spec in _COMMANDS}


class Option(Struct, frozen=True, kw_only=True):
    """An option that is no setting: checked like one, and known to some commands only."""

    setting: Setting
    commands: tuple[str, ...]
    short: str | None = None

    @property
    def name(self) -> str:
        """Its key in ``Command.options``."""
        return self.setting.name

    @property
    def flag(self) -> bool:
        """True where no value is needed."""
        return self.setting.kind is bool


def _option(name: str, kind: Any, about: str, *commands: str, short: str | None = None) -> Option:
    tuned = kind not in (str, bool)
    setting = Setting(
        name=name,
        scope="run",
        annotation=Annotated[kind, Doc(about, "options")],
        default=False if kind is bool else None,
        tuned=tuned,
        doc=Doc(about, "options"),
    )
    return Option(setting=setting, commands=commands, short=short)


_PLANNING = ("train", "demo", "doctor", "plan")
_RUNNING = ("train", "demo", "resume", "replay")
_CHATTING = ("chat", "infer")
_AFTER = ("chat", "infer", "merge")

OPTIONS: tuple[Option, ...] = (
    _option("auto", bool, "work out every setting that is not given", "train", "plan", "data"),
    _option("profile", str, "start from a prepared profile", *_PLANNING, "data"),
    _option(
        "recipe",
        str,
        "start from a prepared recipe; stronger than --profile, weaker than a config file and every option",
        *("train", "doctor", "plan", "data"),
    ),
    _option("config", str, "read settings from a .yaml or .json file", *_PLANNING, "data"),
    _option("as", str, "plan for another machine: a profile's name or a saved report", "train", "doctor", "plan"),
    _option("from", str, "a plan.json or a run's folder: to compare with, or to save", "plan", "profiles", "recipes"),
    _option("dry_run", bool, "plan, write nothing and train nothing", "train", "demo", "resume", "replay"),
    _option("yes", bool, "do not ask", *_RUNNING, "merge", "profiles", "recipes"),
    _option("full", bool, "every setting of the plan", "plan"),
    _option("quick", bool, "look only: try nothing, ask no network", "doctor"),
    _option("fix", bool, "print the fixes as a script for this system", "doctor"),
    _option("apply", bool, "with --fix: run those that change this Python environment alone", "doctor"),
    _option("report", str, "write a file for a bug report, without anything private", "doctor"),
    _option("json", bool, "print JSON instead of text", *_PLANNING, "data", "profiles", "recipes", "resume", "replay"),
    _option("rows", Annotated[int, Meta(ge=0, le=1000)], "rows shown in full; else 4", "data"),
    _option("html", str, "write what is shown as one page for a browser", "data"),
    _option("write", str, "write the rows as messages into a .jsonl file", "data"),
    _option("show", str, "one in full", "profiles", "recipes"),
    _option("save", str, "keep a plan under this name", "profiles", "recipes"),
    _option("topic", str, "what to explain", "help"),
    _option("folder", str, "folder of the run", "resume", "replay"),
    _option("adapter", str, "folder of a run, or of an adapter", *_AFTER),
    _option("base", str, "base model: a folder or a hub id; else the run's own", *_AFTER),
    _option("merged", bool, "use the merged model of the run", *_CHATTING),
    _option("load_in_4bit", bool, "hold the base in 4 bits", *_CHATTING),
    _option("system_prompt", str, "system text", *_CHATTING),
    _option("prompt", str, "text to answer", *_CHATTING),
    _option("chat", bool, "talk instead of answering once", "infer"),
    _option("temperature", Annotated[float, Meta(ge=0)], "0 always takes the likeliest token", *_CHATTING),
    _option("top_p", Annotated[float, Meta(gt=0, le=1)], "sample from this share of the probability", *_CHATTING),
    _option("max_new_tokens", Annotated[int, Meta(ge=1)], "longest answer, in tokens", *_CHATTING),
    _option("seed", Annotated[int, Meta(ge=0)], "make sampling repeatable", *_CHATTING),
    _option("output", str, "folder of the merged model; else FOLDER/final_model", "merge", short="-o"),
    _option("dtype", Literal["bfloat16", "float16", "float32"], "number format of the merged model", "merge"),
    _option("validate", bool, "fail, too, where the merged model cannot be compared with the adapter", "merge"),
    _option("test_prompt", str, "let the merged model answer this", "merge"),
    _option("trust_remote_code", bool, "run Python code that comes with the model", *_AFTER),
)
CONFIG_OPTIONS = ("profile", "recipe", "auto", "as", "yes")
"""Options that a config file may hold too."""

SHORT_SETTINGS = {"output": "-o"}


def options_of(command: str) -> dict[str, Option]:
    """The options of a command by name; empty for a command that has none."""
    return {option.name: option for option in OPTIONS if command in option.commands}
