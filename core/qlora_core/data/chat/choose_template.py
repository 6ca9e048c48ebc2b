"""Which chat template a run uses, and why; each must end an answer with a token the model can stop on."""

import re
from datetime import date
from pathlib import Path
from typing import NamedTuple

from qlora_core.data.chat.answer_spans import Ending
from qlora_core.data.chat.chat_template import ChatTemplate, TemplateFault
from qlora_core.data.chat.message_marks import THINKING_ENDS
from qlora_core.data.chat.outline import OTHER_TEMPLATE, any_of, shared_length
from qlora_core.data.chat.template_families import (
    FAMILY_NAMES,
    PLAIN_CHATML,
    TEMPLATE_FAMILIES,
    has_tokens,
    pick_template_family,
    template_family,
    with_bos,
)
from qlora_core.data.chat.text_forms import form_of
from qlora_core.data.chat.tokenizer_files import TokenizerFiles
from qlora_profiles.architectures import architecture_of
from qlora_profiles.errors import UserError
from qlora_profiles.small_file import read_small
from qlora_profiles.suggest import hint, hint_beside

TEMPLATE_SUFFIXES = (".jinja", ".jinja2", ".j2")
PROBE = "\ue0e8"  # stands for the answer while its end is looked for
FOLLOWING = "\ue0ec"  # and for the message behind it


class TemplateChoice(NamedTuple):
    """A template, what it is called, why it was taken, and how an answer ends in it."""

    template: ChatTemplate
    name: str
    reason: str
    ending: Ending

    @property
    def words(self) -> str:
        """The template in a few words, for a plan."""
        if self.name == "own":
            return f"the model's own{self._form()}"
        ours = self.name == PLAIN_CHATML or self.name in TEMPLATE_FAMILIES
        name = f"{FAMILY_NAMES.get(self.name, self.name)} of ours" if ours else self.name
        return f"{name}, as asked" if self.reason.startswith("--") else f"{name}: the model has none"

    def _form(self) -> str:
        asked = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE}]
        form = form_of(self.template.render(asked))
        thinks = ", thinking" if THINKING_ENDS in self.template.source else ""
        return f" ({form.name} form{thinks})" if form else ""


def choose_template(files: TokenizerFiles, wanted: str | None, today: date | None) -> TemplateChoice:
    """The template that was asked for, else the tokenizer's own, else the one its special tokens call for.

    A template of the model's own is never replaced: only a model without any is given one of ours.

    Raises:
        UserError: ``wanted`` cannot be had for this tokenizer, the own one cannot be used, or nothing ends an answer.
    """
    if wanted is not None:
        return _asked_for(files, wanted, today)
    if files.template is None:
        return _picked(files, today)
    template = ChatTemplate(files.template, files.special_tokens, today)
    ending = ending_of(template, files, f"the chat template in {files.template_file}")
    return TemplateChoice(template, "own", f"the model's own, from {files.template_file}", ending)


def ending_of(template: ChatTemplate, files: TokenizerFiles, name: str) -> Ending:
    """How answers end: in the token behind them, in the next role's where the model stops on that, or in the eos token.

    Raises:
        UserError: the template refuses or leaves out an answer, or there is no token that ends a text.
    """
    behind = _behind_answer(template, name)
    goes_on = _behind_answer(template, name, {"role": "user", "content": "?"})
    shared = behind[: shared_length(behind, goes_on)]
    ends, added = any_of(files.end_tokens), any_of(files.added_tokens)
    written = (
        ends.findall(shared)[:1] or added.findall(shared)[-1:] or ends.findall(behind)[:1] or added.findall(behind)[:1]
    )
    if written:
        return Ending(written[0], written[0], written[0])
    following = _leading(ends, goes_on[len(behind) :])
    if following:
        call = {"role": "tool", "content": "?"}
        return Ending(following.strip(), following, _leading(ends, _behind_answer(template, name, call)) or following)
    stop = _eos(files)
    return Ending(stop, stop, stop)


def _behind_answer(template: ChatTemplate, name: str, *following: dict[str, str]) -> str:
    """What a template writes behind an answer, up to the text of what follows; nothing where it refuses that."""
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}, *following]
    messages[2:] = [{**message, "content": FOLLOWING} for message in following]
    try:
        _, found, behind = template.render(messages).rpartition(PROBE)
    except TemplateFault as fault:
        if following:
            return ""
        raise UserError(f"{name} refuses a question and an answer: {fault}", OTHER_TEMPLATE) from fault
    if not found and not following:
        raise UserError(f"{name} leaves out answers: nothing can be learned with it", OTHER_TEMPLATE)
    return behind.partition(FOLLOWING)[0]


def _leading(ends: re.Pattern[str], text: str) -> str:
    """The token that a text begins with, and the white space in front of it."""
    found = ends.match(text.lstrip())
    return text[: len(text) - len(text.lstrip())] + found.group() if found else ""


def _eos(files: TokenizerFiles) -> str:
    stop = files.special_tokens.get("eos_token") or next(iter(files.end_tokens), None)
    if stop is None or files.tokenizer.token_to_id(stop) is None:
        raise UserError(
            "this tokenizer has no token that ends a text", 'set "eos_token" in the model\'s tokenizer_config.json'
        )
    return stop


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
    ending = ending_of(template, files, "the chat template")
    return TemplateChoice(template, path.name, f"--chat-template {wanted}", ending)


def _picked(files: TokenizerFiles, today: date | None) -> TemplateChoice:
    name = pick_template_family(files.added_tokens, architecture_of(files.model_type).template)
    because = (
        f"the tokenizer has {' '.join(template_family(name).needs)}"
        if name in TEMPLATE_FAMILIES
        else "it has no turn markers: ChatML in ordinary tokens, ended by the eos token"
    )
    return _own(files, name, f"the tokenizer has no template; {because}", today)


def _own(files: TokenizerFiles, name: str, reason: str, today: date | None) -> TemplateChoice:
    """One of our own templates. A bos token is written where the tokenizer would add it."""
    template, _, stop = template_family(name)
    stop = stop or _eos(files)
    source = (with_bos(template) if files.adds_bos else template).strip() + "\n"
    return TemplateChoice(ChatTemplate(source, files.special_tokens, today), name, reason, Ending(stop, stop, stop))
