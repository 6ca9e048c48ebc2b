"""Which chat template a run uses, and why; each must end an answer with a token the model can stop on."""

from datetime import date
from pathlib import Path
from typing import NamedTuple

from qlora_core.data.chat.chat_template import ChatTemplate, TemplateFault
from qlora_core.data.chat.template_families import (
    PLAIN_CHATML,
    TEMPLATE_FAMILIES,
    has_tokens,
    pick_template_family,
    template_family,
    with_bos,
)
from qlora_core.data.chat.tokenizer_files import TokenizerFiles
from qlora_profiles.architectures import architecture_of
from qlora_profiles.errors import UserError
from qlora_profiles.small_file import read_small
from qlora_profiles.suggest import hint, hint_beside

TEMPLATE_SUFFIXES = (".jinja", ".jinja2", ".j2")
PROBE = "\ue0e8"  # stands for the answer while its end is looked for
NEVER_STOPS = "never ends an answer with a stop token"


class TemplateChoice(NamedTuple):
    """A template, what it is called, why it was taken, and the token that ends an answer in it."""

    template: ChatTemplate
    name: str
    reason: str
    stop_token: str


def choose_template(files: TokenizerFiles, wanted: str | None, today: date | None) -> TemplateChoice:
    """The template that was asked for, else the tokenizer's own, else the one its special tokens call for.

    Raises:
        UserError: ``wanted`` cannot be had for this tokenizer, or nothing ends an answer.
    """
    if wanted is not None:
        return _asked_for(files, wanted, today)
    if files.template is None:
        return _picked(files, "the tokenizer has no template", today)
    template = ChatTemplate(files.template, files.special_tokens, today)
    stop = stop_token_of(template, files)
    if stop is None:
        return _picked(files, f"the template in {files.template_file} {NEVER_STOPS}", today)
    return TemplateChoice(template, "own", f"the model's own, from {files.template_file}", stop)


def stop_token_of(template: ChatTemplate, files: TokenizerFiles) -> str | None:
    """The special token that the template writes right behind the last answer, or ``None``.

    Raises:
        UserError: the template refuses a question and an answer.
    """
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
    try:
        behind = template.render(messages).rpartition(PROBE)[2].lstrip()
    except TemplateFault as fault:
        raise UserError(
            f"the chat template refuses a question and an answer: {fault}", "--chat-template chatml"
        ) from fault
    candidates = {*files.added_tokens, *files.end_tokens}
    return max((token for token in candidates if behind.startswith(token)), key=len, default=None)


def _asked_for(files: TokenizerFiles, wanted: str, today: date | None) -> TemplateChoice:
    if wanted in TEMPLATE_FAMILIES:
        if has_tokens(wanted, files.added_tokens):
            return _own(files, wanted, f"--chat-template {wanted}", today)
        if wanted == "chatml":
            return _own(files, PLAIN_CHATML, "--chat-template chatml, without its tokens in this tokenizer", today)
        missing = [token for token in TEMPLATE_FAMILIES[wanted].needs if token not in files.added_tokens]
        raise UserError(
            f"--chat-template {wanted}: this tokenizer has no {' '.join(missing)}", "--chat-template chatml"
        )
    return _from_file(files, wanted, today)


def _from_file(files: TokenizerFiles, wanted: str, today: date | None) -> TemplateChoice:
    path = Path(wanted).expanduser()
    if path.suffix not in TEMPLATE_SUFFIXES:
        raise UserError(
            f"--chat-template {wanted}: no such template{hint(wanted, TEMPLATE_FAMILIES)}",
            f"one of {', '.join(TEMPLATE_FAMILIES)}, or a .jinja file",
        )
    try:
        source = read_small(path, f"--chat-template {wanted}").decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = f"{error.strerror}{hint_beside(path)}" if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"--chat-template {wanted}: cannot be read: {reason}") from error
    template = ChatTemplate(source, files.special_tokens, today)
    stop = stop_token_of(template, files)
    if stop is None:
        raise UserError(f"--chat-template {wanted}: it {NEVER_STOPS}", "write {{ eos_token }} after the answer")
    return TemplateChoice(template, path.name, f"--chat-template {wanted}", stop)


def _picked(files: TokenizerFiles, why: str, today: date | None) -> TemplateChoice:
    name = pick_template_family(files.added_tokens, architecture_of(files.model_type).template)
    because = (
        f"the tokenizer has {' '.join(template_family(name).needs)}"
        if name in TEMPLATE_FAMILIES
        else "it has no turn markers: ChatML in ordinary tokens, ended by the eos token"
    )
    return _own(files, name, f"{why}; {because}", today)


def _own(files: TokenizerFiles, name: str, reason: str, today: date | None) -> TemplateChoice:
    """One of our own templates. A bos token is written where the tokenizer would add it."""
    template, _, stop = template_family(name)
    stop = stop or files.special_tokens.get("eos_token")
    if stop is None or files.tokenizer.token_to_id(stop) is None:
        raise UserError(
            "this tokenizer has no token that ends a text", 'set "eos_token" in the model\'s tokenizer_config.json'
        )
    source = (with_bos(template) if files.adds_bos else template).strip() + "\n"
    return TemplateChoice(ChatTemplate(source, files.special_tokens, today), name, reason, stop)
