"""The page ``docs/recipes.md``, made from the files of the recipes that come along."""

from collections.abc import Iterable, Iterator

from qlora_profiles.alias import shown
from qlora_profiles.recipe_file import NamedRecipe
from qlora_profiles.recipes import load_recipe, recipe_names
from qlora_run.cli.markdown import MADE, table

INTRO = """\
A recipe is a named set of what is learned: model, data, sample, rank, schedule, optimizer, output. A profile
(`qlora-run profiles`) is a named set for a machine. They are used alone or together, and every option still counts:

```
qlora-run --recipe gemma3-4b-belle
qlora-run --recipe gemma3-4b-belle --profile windows-12gb
qlora-run --recipe gemma3-4b-belle --data mine.jsonl --epochs 1 --output out
qlora-run plan --recipe gemma3-4b-belle
qlora-run recipes show gemma3-4b-belle
qlora-run recipes save mine --from out
```

- Later ones win: profile, recipe, config file (which may say `recipe: NAME`), command line.
- What a recipe says of its own model or data (`local_dir`, `max_samples`) is set aside where you name another one.
- Batch and accumulation may be changed alone: `--batch_size 2` counts with the recipe's accumulation.
- A recipe never says how a machine computes. What its source says of that stands under "worked out here", with the
  option that asks for it all the same.
- Your own lie as YAML files in your settings folder; `qlora-run recipes` says where."""


def recipes_markdown() -> str:
    """The page of all recipes."""
    parts = [MADE, "# Recipes", INTRO]
    for recipe in map(load_recipe, recipe_names()):
        parts += _recipe(recipe)
    return "\n\n".join(parts) + "\n"


def _recipe(recipe: NamedRecipe) -> Iterator[str]:
    yield f"## {recipe.name}"
    yield f"{recipe.about}.\n\n{recipe.about_zh}。\n\nAfter: {recipe.source}."
    yield table(("setting", "value"), _values(recipe.settings.items()))
    if recipe.execution:
        asked = ", ".join(f"`--{name.replace('_', '-')} {shown(value)}`" for name, value in recipe.execution.items())
        yield f"Worked out here for the machine, said there: {asked}."
    if recipe.left_out:
        yield "\n".join(f"- `{name}`: {why}." for name, why in recipe.left_out.items())


def _values(items: Iterable[tuple[str, object]]) -> Iterator[tuple[str, str]]:
    for name, value in items:
        text = f"{value:g}" if isinstance(value, float) else shown(value)
        yield f"`{name}`", f"`{text}`"
