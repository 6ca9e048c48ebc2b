"""``python -m qlora_core.jobs.chat JOB``: talk with a trained model in the terminal, or answer one prompt."""

import sys
from collections.abc import Callable

import msgspec

from qlora_core.data.schema import Message, Role
from qlora_core.inference.generate import Sampling, generate
from qlora_core.inference.load import Talker, load
from qlora_core.jobs.command import run_command
from qlora_profiles.jobs import ChatJob

LEAVE = ("quit", "exit")


def chat(job: ChatJob) -> None:
    """Answer ``job.prompt``, or message by message until a person leaves."""
    talker = load(job)
    sampling = Sampling(temperature=job.temperature, top_p=job.top_p, max_new_tokens=job.max_new_tokens, seed=job.seed)
    if job.prompt is not None:
        answer(talker, [*opening(talker), _message("user", job.prompt)], sampling, _show)
        print()
        return
    print("Type a message; quit or exit ends the chat.")
    converse(talker, sampling)


def converse(talker: Talker, sampling: Sampling) -> None:
    """Read messages from the terminal until quit, exit or the end of input."""
    messages = opening(talker)
    while (text := _ask()) is not None:
        if not text:
            continue
        messages.append(_message("user", text))
        messages.append(_message("assistant", answer(talker, messages, sampling, _show)))
        print()


def answer(talker: Talker, messages: list[Message], sampling: Sampling, on_text: Callable[[str], None] | None) -> str:
    """The model's next message."""
    return generate(
        talker.model, talker.tokenizer, talker.chat.prompt_ids(messages), talker.stop_ids, sampling, on_text
    )


def opening(talker: Talker) -> list[Message]:
    """The system message that the model was trained with, or the one asked for."""
    return [_message("system", talker.system_prompt)] if talker.system_prompt else []


def _message(role: Role, content: str) -> Message:
    return Message(role=role, content=content, supervised=False)


def _ask() -> str | None:
    try:
        text = input("> ").strip()
    except EOFError:
        return None
    return None if text.lower() in LEAVE else text


def _show(text: str) -> None:
    """Print at once; a console that cannot show a character gets a question mark instead of an error."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))
    sys.stdout.flush()


def main() -> int:
    """Run the job given as JSON on the command line."""
    return run_command(lambda text: chat(msgspec.json.decode(text, type=ChatJob)))


if __name__ == "__main__":
    sys.exit(main())
