"""``chat`` and ``infer``: hand a finished model over to the core's conversation."""

from typing import Any

from qlora_profiles.errors import UserError
from qlora_profiles.jobs import ChatJob
from qlora_run.cli.commands import Command
from qlora_run.commands.target import cache_of, chat_base, target_of
from qlora_run.supervise.child import run_job


def run(command: Command) -> int:
    """Chat, or answer one prompt.

    Raises:
        UserError: ``infer`` without a prompt, or nothing to chat with.
    """
    options = command.options
    if command.name == "infer" and not options.get("prompt"):
        fix = 'qlora-run infer FOLDER --prompt "..."   or   qlora-run chat FOLDER'
        raise UserError("infer: what should be answered?", fix)
    return run_job("qlora_core.jobs.chat", chat_job(options, set(command.given_options)))


def chat_job(options: dict[str, Any], given: set[str]) -> ChatJob:
    """The options as a job; what was not given keeps the job's defaults. Raises UserError: nothing to chat with."""
    target = target_of(options)
    base = chat_base(target, options)
    names = [n for n in ChatJob.__struct_fields__ if n in given and n != "base" and options.get(n) is not None]
    return ChatJob(target=str(target), base=base, cache=cache_of(target), **{n: options[n] for n in names})
