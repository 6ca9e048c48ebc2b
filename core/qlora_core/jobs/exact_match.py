"""``python -m qlora_core.jobs.exact_match JOB``: how often a model gives exactly the held-out answers."""

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from qlora_core.data import Conversation, ReadOptions, read_data
from qlora_core.inference.generate import generate_many
from qlora_core.inference.load import ChatModel, load
from qlora_core.jobs.chat import system_messages
from qlora_core.jobs.command import run_command
from qlora_profiles.jobs import ExactMatchJob

ROWS_AT_ONCE = 32


def share_exact(chat_model: ChatModel, rows: Sequence[Conversation], max_new_tokens: int) -> float:
    """The share of ``rows`` whose last message is answered to the letter, greedily."""
    prompts = [chat_model.chat.prompt_ids([*system_messages(chat_model), *row.messages[:-1]]) for row in rows]
    answers: list[str] = []
    for start in range(0, len(prompts), ROWS_AT_ONCE):
        batch = prompts[start : start + ROWS_AT_ONCE]
        answers += generate_many(chat_model.model, chat_model.chat, batch, chat_model.stop_ids, max_new_tokens)
    right = sum(answer.strip() == row.messages[-1].content.strip() for answer, row in zip(answers, rows, strict=True))
    return right / len(rows)


def measure(job: ExactMatchJob) -> dict[str, float]:
    """The share (0 to 1) for each of the job's models. Raises UserError for data or a model that cannot be read."""
    rows = read_data(ReadOptions(path=str(Path(job.data)))).conversations
    return {name: share_exact(load(model), rows, job.max_new_tokens) for name, model in job.models.items()}


def main() -> int:
    """Run the job given as JSON on the command line; prints one line of JSON."""

    def work(text: str) -> None:
        found = measure(msgspec.json.decode(text, type=ExactMatchJob))
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
