"""Rows as text with what is supervised in it, and a tally of what a person should know of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from qlora_core.data.bad_rows import RowRejected
from qlora_core.data.chat.answer_spans import Ending, Located, SpanFinder
from qlora_core.data.chat.chat_template import ChatTemplate, TemplateFault
from qlora_core.data.chat.message_marks import as_dicts
from qlora_core.data.chat.outline import OTHER_TEMPLATE, Unlocatable, any_of
from qlora_core.data.chat.template_families import TEMPLATE_FAMILIES, pick_template_family
from qlora_core.data.chat.text_forms import WORDS, TextForm, asked_by, form_of
from qlora_core.data.chat.tokenizer_files import TokenizerFiles
from qlora_core.data.examples import RenderedExample
from qlora_core.data.schema import Conversation
from qlora_profiles.architectures import architecture_of


@dataclass(slots=True)
class Tally:
    """Counts over the rows that were rendered.

    ``asked`` is what asked for their last answers, ``forms`` are the templates that stand rendered in text rows.
    """

    chats: int = 0
    texts: int = 0
    whole: int = 0
    unthought: int = 0
    stops_added: int = 0
    systems_moved: int = 0
    templated: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    forms: Counter[TextForm] = field(default_factory=Counter)

    def warnings(self) -> list[str]:
        """What is learned otherwise than a person may think, in sentences."""
        told = []
        if self.unthought:
            told.append(
                f"{self.unthought:,} earlier answers are learned without their reasoning: the template leaves it out "
                "where a conversation goes on"
            )
        if self.systems_moved:
            told.append(
                f"in {self.systems_moved:,} rows the template writes the system message behind earlier answers: "
                "those are learned without it"
            )
        words = sum(count for form, count in self.forms.items() if form.name == WORDS)
        templated = self.templated - (words if words * 2 < self.texts else 0)  # some texts quote who said what
        if templated:
            told.append(
                f"{templated:,} of {self.texts:,} text rows hold a rendered template{self._form_names()}: learned "
                'whole, prompts and markers too; to learn the answers alone, bring rows of "messages"'
            )
        return told

    def _form_names(self) -> str:
        names = sorted({form.name for form in self.forms})
        return f" ({', '.join(names)})" if names else ""


class RowRenderer:
    """Renders rows with one template, and keeps a tally. ``stops`` are the tokens that may end an answer."""

    def __init__(self, files: TokenizerFiles, template: ChatTemplate, ending: Ending, stops: Sequence[str]) -> None:
        self._files = files
        self._template = template
        self._stop = ending.stop
        self._spans = SpanFinder(template, ending, stops)
        marking = files.added_tokens - {*files.special_tokens.values(), *files.end_tokens}
        self._marking = any_of(marking)
        self.tally = Tally()

    @property
    def generation_prompt(self) -> str:
        """What the template writes to ask for an answer; nothing where it has no such thing."""
        return self._spans.generation_prompt

    def rendered(self, row: Conversation) -> RenderedExample:
        """A row as text.

        Raises:
            RowRejected: the template refuses it, leaves out a part of it, or does not show where its answers are.
        """
        if row.text is not None:
            return self._rendered_text(row.text)
        try:
            located = self._spans.locate(row)
        except TemplateFault as fault:
            raise RowRejected(f"the chat template refuses: {fault}", fix=self._way_on(row)) from fault
        except Unlocatable as fault:
            fix = self._way_on(row) if fault.fix == OTHER_TEMPLATE else fault.fix
            raise RowRejected(str(fault), fix=fix) from fault
        self._count(located, row)
        spans = sorted(located.spans, key=lambda span: span.start)
        wanted = [span[1:] for span in spans if row.messages[span.message].supervised != row.supervise_all]
        return RenderedExample(located.text, wanted, row.supervise_all, located.asked)

    def text_prompt(self, text: str) -> str:
        """The beginning of a text, with the bos token where the tokenizer adds it."""
        bos = self._files.special_tokens.get("bos_token", "") if self._files.adds_bos else ""
        return bos + text.removeprefix(bos)

    def asked_as(self) -> str:
        """How a model is asked that learned the rows of the tally: ``chat``, by the template; ``chat:`` and what asks
        for an answer instead of the template's own words; ``text``, which is continued; ``text:`` and the text around
        ``{prompt}``."""
        tally = self.tally
        if tally.texts > tally.chats:
            form = asked_by(tally.forms, tally.texts)
            return f"text:{form}" if form else "text"
        common = tally.asked.most_common(1)
        return f"chat:{common[0][0]}" if common and common[0][0] not in ("", self.generation_prompt) else "chat"

    def learned(self, template: str) -> str:
        """What of the rows of the tally is learned, with the ``template`` in words."""
        tally = self.tally
        rows = "text rows" if not tally.chats else "1 text row" if tally.texts == 1 else f"{tally.texts:,} text rows"
        whole = f"{rows} learned whole, ended by {self.text_end}"
        if not tally.chats:
            return f"not applied: {whole}" if tally.texts else ""
        what = "every token" if tally.whole == tally.chats else f"the answers and {self._stop}"
        added = ", put behind the last answer of a row" if tally.stops_added else ""
        return f"{template}; learned: {what}{added}" + (f"; {whole}" if tally.texts else "")

    @property
    def text_end(self) -> str:
        """The token that ends a plain text."""
        return self._files.special_tokens.get("eos_token", self._stop)

    def _count(self, located: Located, row: Conversation) -> None:
        self.tally.chats += 1
        self.tally.whole += row.supervise_all
        self.tally.unthought += located.left_out
        self.tally.stops_added += located.stop_added
        self.tally.systems_moved += located.system_moved

    def _rendered_text(self, text: str) -> RenderedExample:
        """Plain text as a model meets it in pretraining: bos where the tokenizer adds it, and an end."""
        self.tally.texts += 1
        form = form_of(text)
        if form:
            self.tally.forms[form] += 1
        self.tally.templated += bool(form or self._marking.search(text))
        end = self.text_end
        ended = text.rstrip() if text.rstrip().endswith(end) else text
        return RenderedExample(self.text_prompt(ended.removesuffix(end)) + end, [], supervise_all=True)

    def _way_on(self, row: Conversation) -> str:
        """Another template that takes the row: of the model's own family, where only the system message is refused."""
        if len(row.messages) < 2 or row.messages[0].role != "system":
            return OTHER_TEMPLATE
        try:
            self._template.render(as_dicts(row.messages[1:]))
        except TemplateFault:
            return OTHER_TEMPLATE
        name = pick_template_family(self._files.added_tokens, architecture_of(self._files.model_type).template)
        return f"--chat-template {name}" if name in TEMPLATE_FAMILIES else OTHER_TEMPLATE
