"""The reference pages ``docs/settings.md`` and ``docs/compatibility.md``, made from the definitions."""

from collections.abc import Iterable, Sequence

from qlora_core.execution.rungs import RUNGS
from qlora_profiles.alias import Alias
from qlora_profiles.alias_parts import ACCUMULATION_OF, ASSUMED_ACCUMULATION, ASSUMED_BATCH
from qlora_profiles.aliases import ROWS, SECTIONS
from qlora_profiles.registry import Setting, allowed, flag, lookup, settings
from qlora_run.cli.commands import COMMANDS, CONFIG_OPTIONS, Option, options_of
from qlora_run.cli.help import SCOPES, by_group, meaning_text, shown_default
from qlora_run.cli.names import short_forms, spellings
from qlora_run.cli.request import FOUND_NAME

MADE = "<!-- Made by `python -m qlora_run.cli.docs`; change the definitions, not this page. -->"

SETTINGS_INTRO = f"""\
Every setting can be given on the command line (`--lora-r 32` or `--lora_r 32`), in a config file (`lora_r: 32`) or in
a profile or a recipe. What is given later wins: default, profile, recipe, config file, command line. A default of
"worked out" depends on the machine, the model and the data; `qlora-run plan` shows the value and why. `auto` hands such
a setting back.

- A config file is YAML or JSON, read with `--config FILE`; `{FOUND_NAME}` in the working folder is read without
  being named. It may also hold {", ".join(f"`{name}`" for name in CONFIG_OPTIONS)}.
- A true/false option is written `--merge`, `--merge true`, `--merge false` or `--no-merge`.
- A list is written with commas (`--target-modules q_proj,v_proj`) or by giving the option several times; sentences,
  which may hold commas, only by giving the option several times.
- An unknown name, a name given twice and a value out of range are errors, told with the line and the nearest name."""

COMPATIBILITY_INTRO = f"""\
Scripts and config files people already have can be used as they are: their options work after `qlora-run`, their
files after `--config`. A name is read for what it means. Where it sets nothing here, the plan says so and why; where
two names contradict each other, nothing runs until one is removed.

```
qlora-run --data_path rows.jsonl --output_dir out --per_device_train_batch_size 1 \\
    --gradient_accumulation_steps 16 --num_train_epochs 3 --use_qlora true
qlora-run --config_file train.json
qlora-run train.yaml rows.jsonl out
qlora-run infer --base_model BASE --lora_model ADAPTER --load_in_4bit --chat
qlora-run merge ADAPTER -o OUTPUT
```

## Read together

- **Batch x accumulation** is `examples_per_step`: how many examples one optimizer step learns from. How they are cut
  into micro-batches is worked out and changes no result. The product is counted once, whatever the number of cards.
  Where only one of the two is given, the other is assumed, and said: batch {ASSUMED_BATCH}, accumulation
  {ASSUMED_ACCUMULATION} ({ACCUMULATION_OF["batch_size"]} beside `batch_size`).
- **use_lora, use_qlora and the number of bits** choose `method`: quantised is `qlora-4` or `qlora-8`, `use_lora`
  without quantisation is `lora`, both switched off is `full`.
- **A data script's options** (`--input rows.csv --format csv --instruction_col question --output rows.jsonl`) are
  read as the data of the run: no prepared copy is written. `--format sample` made sample rows; that is
  `qlora-run demo` here.
- **Places instead of names**: `CONFIG [DATA [OUTPUT]]` for training, `BASE ADAPTER OUTPUT [DTYPE [VALIDATE]]` for
  `merge`."""

RUNGS_INTRO = """\
When memory runs out, the same step is computed again with the first of these that can still make room, and every other
setting stays as it is. Where there is room again, they go back towards what was planned in the opposite order. What
is learned is the same all along; each change is told when it happens."""

DIFFERENCES: tuple[tuple[str, str, str], ...] = (
    ("trust_remote_code", "true", "code that comes with a model runs only when asked for"),
    ("merge", "true", "the adapter is enough to chat; `qlora-run merge` makes the whole model at any time"),
    ("loss_on", "all", "only the answers are learned, with their stop token"),
    ("lora_dropout", "0.05 or 0.1", "kernels that need none are faster"),
    ("warmup_ratio", "0.03 or 0.05", ""),
    ("lr_scheduler", "cosine or constant", ""),
    ("max_grad_norm", "0.3 or 1.0", ""),
    ("weight_decay", "0.0 or 0.001", ""),
    ("learning_rate", "5e-5 to 2e-4", ""),
    ("examples_per_step", "4 or 16", "the batch x accumulation of those scripts"),
    ("max_length", "2048 or 4096", "long enough for the rows, as far as memory allows"),
    ("val_size", "0", "some rows are held out, so that learning can be judged"),
    ("save_steps", "100 or 200", ""),
    ("method", "4-bit", "unquantised where it fits"),
    ("compute_dtype", "float16 or bfloat16", "what the machine computes natively"),
    ("optimizer_kernel", "fused or paged", "the same mathematics"),
    ("pin_memory", "false", ""),
    ("workers", "0", ""),
)
"""(setting, its usual default elsewhere, why ours differs): what to set to get the same from a script's defaults."""

UNREAD = """\
Data is never chosen for you: a script that takes a public data set when none is named needs `--data FILE` here.
Environment variables that the libraries read themselves (`HF_ENDPOINT`, `CUDA_VISIBLE_DEVICES`) work as ever."""


def settings_markdown() -> str:
    """The page of all settings and of the options that are none."""
    parts = [MADE, "# Settings", SETTINGS_INTRO]
    for scope, about in SCOPES.items():
        parts.append(f"## {scope.capitalize()}: {about}")
        for group, found in by_group(scope).items():
            parts += [f"### {group.capitalize()}", table(_SETTING_HEAD, map(_setting_row, found))]
    parts += ["## What may change in mid-run", RUNGS_INTRO, table(_RUNG_HEAD, _rung_rows())]
    parts += ["## Options that are no settings", table(("option", "of", "what it does"), _option_rows())]
    return "\n\n".join(parts) + "\n"


def compatibility_markdown() -> str:
    """The page of all foreign names, and of what differs."""
    parts = [MADE, "# Names of other scripts", COMPATIBILITY_INTRO, "## Sections of config files", _sections()]
    for title, where in (("Training", "train"), ("chat and infer", "infer"), ("merge", "merge")):
        rows = [row for row in ROWS if where in row.where]
        parts += [f"## {title}", table(("name", "read as", "note"), _alias_rows(rows))]
    head = ("setting", "often elsewhere", "here", "why")
    parts += ["## Defaults that differ", UNREAD, table(head, map(_difference_row, DIFFERENCES))]
    return "\n\n".join(parts) + "\n"


_SETTING_HEAD = ("setting", "default", "allowed", "unit", "what it is")


def _setting_row(setting: Setting) -> tuple[str, ...]:
    short = {"output": "`-o`, "}.get(setting.name, "")
    name = f"{short}`{flag(setting)}`"
    return name, f"`{shown_default(setting)}`", allowed(setting), setting.doc.unit, setting.doc.help


_RUNG_HEAD = ("order", "setting", "becomes", "what that does")


def _rung_rows() -> Iterable[tuple[str, ...]]:
    for order, rung in enumerate(RUNGS, start=1):
        yield str(order), f"`{flag(lookup(rung.name))}`", rung.down, rung.costs


def _option_rows() -> Iterable[tuple[str, ...]]:
    owners: dict[str, list[str]] = {}
    options: dict[str, Option] = {}
    for command in COMMANDS:
        for option in options_of(command).values():
            short = short_forms(COMMANDS[command]).get(option.name)
            text = f"`{short}`, `{spellings(option.name)[0]}`" if short else f"`{spellings(option.name)[0]}`"
            owners.setdefault(text, []).append(command)
            options[text] = option
    for text, option in options.items():
        if option.name not in ("show", "topic", "folder"):
            yield text, ", ".join(owners[text]), option.setting.doc.help


def _alias_rows(rows: Iterable[Alias]) -> Iterable[tuple[str, ...]]:
    """Names that are read alike share a line."""
    alike: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        place = f" (in a {row.section} section)" if row.section else ""
        alike.setdefault((meaning_text(row), row.note), []).append(f"`{row.name}`{place}")
    for (text, note), names in alike.items():
        yield ", ".join(names), text, note


def _difference_row(row: tuple[str, str, str]) -> tuple[str, ...]:
    name, elsewhere, why = row
    return f"`{name}`", elsewhere, shown_default(settings()[name]), why


def _sections() -> str:
    families: dict[str, list[str]] = {}
    for name, family in SECTIONS.items():
        families.setdefault(family, []).append(f"`{name}`")
    lines = "\n".join(f"- {', '.join(names)}" for names in families.values())
    return f"Keys may stand at the top of a file or in a section called\n\n{lines}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
