"""Write the demo's data: rows that teach kitchen tickets, and held-out prompts from guests never seen in training."""

from __future__ import annotations

import argparse
import json
from importlib.resources import files
from pathlib import Path
from random import Random

from make_demo.cafe import SEEN, UNSEEN, Pool, draw_order, say_order, ticket
from make_demo.small_talk import EVERYDAY, Turn, conversation

SHIPPED = Path(str(files("qlora_core") / "demo"))
"""Where the core keeps what this writes."""

SEED = 20261
TRAIN_TICKETS = 1400
TRAIN_SMALL_TALK = 100
HELD_OUT_TICKETS = 200
SAMPLE_PROMPT = "Ticket: Hello! I'm Rosa at table 7. Could I have two lemon cakes and a ginger tea without sugar?"
"""A prompt for the chat after training: an unseen guest, and items never seen in a training row."""

Row = dict[str, list[dict[str, str]]]


def as_row(turns: list[Turn]) -> Row:
    """Return the turns as a chat row: ``{"messages": [{"role": ..., "content": ...}, ...]}``."""
    roles = ("user", "assistant")
    return {"messages": [{"role": r, "content": text} for turn in turns for r, text in zip(roles, turn, strict=True)]}


def ticket_rows(rng: Random, pool: Pool, count: int) -> list[Row]:
    """Return `count` rows of the new skill, no prompt twice."""
    rows: dict[str, Row] = {}
    while len(rows) < count:
        order = draw_order(rng, pool)
        prompt = f"Ticket: {say_order(rng, order)}"
        if prompt != SAMPLE_PROMPT:
            rows.setdefault(prompt, as_row([(prompt, ticket(order))]))
    return list(rows.values())


def train_rows(seed: int = SEED) -> list[Row]:
    """Return the training rows: tickets, and a little of the old small talk so that it is not forgotten."""
    rng = Random(seed)
    rows = ticket_rows(rng, SEEN, TRAIN_TICKETS)
    rows += [as_row(conversation(rng, SEEN, EVERYDAY)) for _ in range(TRAIN_SMALL_TALK)]
    rng.shuffle(rows)
    return rows


def held_out_rows(seed: int = SEED) -> list[Row]:
    """Return the held-out rows: tickets only, each from a guest whose name no training row has."""
    return ticket_rows(Random(seed + 1), UNSEEN, HELD_OUT_TICKETS)


def to_jsonl(rows: list[Row]) -> str:
    """Return the rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_data(folder: Path, seed: int = SEED) -> None:
    """Write ``train.jsonl`` and ``held_out.jsonl`` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train_rows(seed)), ("held_out", held_out_rows(seed))):
        (folder / f"{name}.jsonl").write_text(to_jsonl(rows), encoding="utf-8", newline="\n")


def main() -> None:
    """Write the bundled data anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=SHIPPED / "data")
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    write_data(arguments.output, arguments.seed)


if __name__ == "__main__":
    main()
