"""The rows of a comparison, in the product's own tokens, so that every contender learns exactly the same.

usage: python bench/speed_rows.py JOB.json (``speed.py`` writes it); leaves ``rows.jsonl`` and ``facts.json``.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

ROWS, FACTS, PACKED = "rows.jsonl", "facts.json", "concatenated.jsonl"
SLACK_TOKENS = 8
"""Messages in one conversation may be rendered a little shorter than each alone."""


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder = Path(job["folder"])
    settings = job["settings"]
    if job["packed_rows"]:
        settings |= {"data": [str(concatenated(settings, job["packed_rows"], folder / PACKED))]}
    plan = planned(settings)
    rows = training_examples(plan, folder)
    with (folder / ROWS).open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps({"input_ids": row.input_ids, "supervised": row.supervised}) + "\n")
    (folder / FACTS).write_text(json.dumps(facts(plan, rows)), encoding="utf-8")


def planned(settings: dict[str, Any]) -> Any:
    """The product's own plan for these settings on this machine."""
    from qlora_profiles.plan import Given, Request
    from qlora_run.planner.make_plan import PlanInput, make_plan

    given = {name: Given(value=value, source="cli") for name, value in settings.items()}
    return make_plan(PlanInput(request=Request(given=given)))


def training_examples(plan: Any, folder: Path) -> Sequence[Any]:
    """The training rows as the core prepares them, in the order that its sampler draws from."""
    from qlora_core.session.event_log import EventLog
    from qlora_core.train.dataset import prepare_data

    log = EventLog(folder)
    try:
        return list(prepare_data(plan, folder, log).train)
    finally:
        log.close()


def facts(plan: Any, rows: Sequence[Any]) -> dict[str, Any]:
    """What the contenders and the report need to know."""
    from qlora_profiles.settings import values_of

    recipe, execution = plan.recipe_values(), plan.execution_values()
    gpu = next(iter(plan.cards()), None)
    return {
        "recipe": values_of(recipe),
        "device": execution.device,
        "dtype": execution.compute_dtype,
        "targets": sorted({shape.name for shape in plan.model.linears}),
        "params": plan.model.layer_linear_params + plan.model.head_params,
        "card": gpu.name if gpu else None,
        "uuid": gpu.uuid if gpu else None,
        "rows": len(rows),
        "mean_tokens": sum(len(row.input_ids) for row in rows) / len(rows),
        "longest_tokens": max(len(row.input_ids) for row in rows),
        "versions": plan.report.packages | {"torch": plan.report.torch.version},
    }


def concatenated(settings: dict[str, Any], count: int, path: Path) -> Path:
    """``count`` conversations of at least ``max_length`` tokens, each made of several rows; the product cuts them."""
    wanted = settings["max_length"] + SLACK_TOKENS
    parts = cycle(conversations(settings))
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for _ in range(count):
            messages: list[dict[str, str]] = []
            tokens = 0
            while tokens < wanted:
                added, length = next(parts)
                messages += added
                tokens += length
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    return path


def conversations(settings: dict[str, Any]) -> Iterator[tuple[list[dict[str, str]], int]]:
    """Each row's user and assistant messages with its length in tokens."""
    from qlora_core.data.pipeline import tokenize
    from qlora_profiles.settings import Recipe, Run

    names = Recipe.__struct_fields__
    recipe = Recipe(**{name: value for name, value in settings.items() if name in names})
    data, _, examples = tokenize(recipe, Run(output=""))
    for conversation, example in zip(data.conversations, examples, strict=True):
        messages = [message for message in conversation.messages if message.role in ("user", "assistant")]
        if messages:
            yield [{"role": message.role, "content": message.content} for message in messages], len(example.input_ids)


if __name__ == "__main__":
    main()
