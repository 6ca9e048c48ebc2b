"""``python -m qlora_core.jobs.chat JOB``: talk with a trained model in the terminal, or answer one prompt."""

import sys
from collections.abc import Callable

import msgspec

from qlora_core.data.schema import Message, Role
from qlora_core.data.token_ids import check_ids
from qlora_core.inference.generate import Sampling, generate
from qlora_core.inference.load import ChatModel, load
from qlora_core.jobs.command import run_command
from qlora_profiles.jobs import ChatJob
from qlora_profiles.visible import visible

LEAVE = ("quit", "exit")
_HOW = {
    "chat": "Type a message",
    "text": "It learned plain texts: type how one begins, each is continued by itself",
}


def chat(job: ChatJob) -> None:
    """Answer ``job.prompt``, or message by message until a person leaves."""
    chat_model = load(job)
    sampling = Sampling(temperature=job.temperature, top_p=job.top_p, max_new_tokens=job.max_new_tokens, seed=job.seed)
    if job.prompt is not None:
        answer(chat_model, [*system_messages(chat_model), _message("user", job.prompt)], sampling, _show)
        print()
        return
    print(f"{_HOW[chat_model.chat.asked_as.partition(':')[0]]}; quit or exit ends the chat.")
    converse(chat_model, sampling)


def converse(chat_model: ChatModel, sampling: Sampling) -> None:
    """Read messages from the terminal until quit, exit or the end of input."""
    messages = system_messages(chat_model)
    while (text := _ask()) is not None:
        if not text:
            continue
        messages.append(_message("user", text))
        messages.append(_message("assistant", answer(chat_model, messages, sampling, _show)))
        print()


def answer(
    chat_model: ChatModel, messages: list[Message], sampling: Sampling, on_text: Callable[[str], None] | None
) -> str:
    """The model's next message. Raises UserError for a prompt with a token that its embedding lacks."""
    prompt_ids = chat_model.chat.prompt_ids(messages)
    rows = chat_model.model.get_input_embeddings().weight.shape[0]
    check_ids(prompt_ids, rows, chat_model.chat, "the prompt")
    return generate(
        chat_model.model,
        chat_model.chat,
        prompt_ids,
        chat_model.stop_ids,
        sampling,
        on_text,
    )


def system_messages(chat_model: ChatModel) -> list[Message]:
    """The system message that the model was trained with, or the one asked for."""
    return [_message("system", chat_model.system_prompt)] if chat_model.system_prompt else []


def _message(role: Role, content: str) -> Message:
    return Message(role=role, content=content, supervised=False)


def _ask() -> str | None:
    try:
        text = input("> ").strip()
    except EOFError:
        return None
    return None if text.lower() in LEAVE else text


def _show(text: str) -> None:
    """Print at once; a console that cannot show a character gets a question mark instead of an error.

    What a model writes steers no terminal: control characters are spelled out.
    """
    text = visible(text)
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))
    sys.stdout.flush()


def main() -> int:
    """Run the job given as JSON on the command line."""
    return run_command(lambda text: chat(msgspec.json.decode(text, type=ChatJob)))


if __name__ == "__main__":
    sys.exit(main())
