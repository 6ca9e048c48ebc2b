"""Conversations to supervised tokens: one rendering for training, evaluation and chat."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_core.data.bad_rows import BadRow, BadRows, RowRejected
from qlora_core.data.chat.chat_template import TemplateFault
from qlora_core.data.chat.choose_template import TemplateChoice, choose_template
from qlora_core.data.chat.message_marks import as_dicts
from qlora_core.data.chat.outline import OTHER_TEMPLATE
from qlora_core.data.chat.row_renderer import RowRenderer
from qlora_core.data.chat.text_forms import PROMPT
from qlora_core.data.chat.tokenizer_files import TokenizerFiles, read_tokenizer
from qlora_core.data.examples import RenderedExample, TokenizedExample, fill_spans, first_inside
from qlora_core.data.lengths.length_sampling import LengthSample, sample_lengths
from qlora_core.data.lengths.token_bounds import TokenBounds, can_bound
from qlora_core.data.lengths.token_counts import TokenCounts, token_counts_of
from qlora_core.data.schema import Conversation, Message
from qlora_profiles.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Encoding

CHUNK_ROWS = 1000
Progress = Callable[[int, int], None]


class ChatTokenizer:
    """A model's tokenizer with the chat template that the run uses.

    ``template`` is the jinja text, ``template_name`` and ``template_source`` say which one it is and why,
    ``template_words`` both in short.
    ``stop_tokens`` and ``stop_ids`` are what generation ends on: the trained end of an answer, or of a text, first.
    ``asked_as`` is how prompts are made, as ``RowRenderer.asked_as`` tells it.
    """

    def __init__(self, files: TokenizerFiles, choice: TemplateChoice, asked_as: str = "chat") -> None:
        self._files = files
        self._tokenizer = files.tokenizer
        self._template = choice.template
        self.template = choice.template.source
        self.template_name = choice.name
        self.template_source = choice.reason
        self.template_words = choice.words
        ends = dict.fromkeys((choice.ending.stop, *files.end_tokens))
        ids = {token: self._tokenizer.token_to_id(token) for token in ends}
        self.stop_tokens = [token for token, number in ids.items() if number is not None]
        self.stop_ids = [number for number in ids.values() if number is not None]
        self.vocab_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self._rows = RowRenderer(files, choice.template, choice.ending, self.stop_tokens)
        self.asked_as = asked_as

    @classmethod
    def from_folder(
        cls, path: Path, chat_template: str | None = None, *, today: date | None = None, asked_as: str = "chat"
    ) -> "ChatTokenizer":
        """Load the tokenizer of a model folder, without transformers.

        ``chat_template`` is one of our own by name, or a .jinja file; ``None`` takes the tokenizer's own.
        ``today`` freezes the date that some templates write, so that a later run renders the same text.

        Raises:
            UserError: the folder has no tokenizer or a damaged one, or no template that ends an answer can be had.
        """
        files = read_tokenizer(Path(path))
        return cls(files, choose_template(files, chat_template, today), asked_as)

    @property
    def special_tokens(self) -> list[str]:
        """The texts of all tokens that are no text of their own: ends, turn markers, padding."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        return [token.content for token in added if token.special]

    @property
    def tells_date(self) -> bool:
        """Whether the template writes the present date, so that ``today`` matters."""
        return self._template.tells_date

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = False,
    ) -> str:
        """Messages as text, with the JSON schemas of the ``tools`` that the assistant may call.

        Raises:
            UserError: the template refuses them.
        """
        try:
            return self._template.render(
                self.dicts_of(messages), tools=tools, add_generation_prompt=add_generation_prompt
            )
        except TemplateFault as error:
            raise UserError(f"the chat template refuses: {error}", OTHER_TEMPLATE) from error

    def dicts_of(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Messages as this template wants them."""
        text_arguments = any(message.tool_calls for message in messages) and self._template.text_arguments
        return as_dicts(messages, text_arguments=text_arguments)

    def text_of(self, conversation: Conversation) -> str:
        """A row as the text that is trained on.

        Raises:
            UserError: the template refuses the row, or does not show where its answers are.
        """
        try:
            return self._rows.rendered(conversation).text
        except RowRejected as fault:
            raise UserError(f"row {conversation.line}: {fault.reason}", fault.fix) from fault

    def learned(self) -> str:
        """The template and what of the rows is learned, of those that were encoded or counted, in words."""
        return self._rows.learned(self.template_words)

    def warnings(self) -> list[str]:
        """What a person should know of the rows that were encoded or counted."""
        return self._rows.tally.warnings()

    def ask_as_trained(self) -> None:
        """Make prompts from now on, and end answers, as the rows were that have been encoded."""
        self.asked_as = self._rows.asked_as()
        self.end_as_trained()

    def end_as_trained(self) -> None:
        """Put the end of a text first among the stop tokens, where the rows that were counted or encoded are texts."""
        end = self._rows.text_end
        number = self._tokenizer.token_to_id(end)
        if self._rows.asked_as().startswith("text") and number is not None:
            self.stop_tokens = list(dict.fromkeys((end, *self.stop_tokens)))
            self.stop_ids = list(dict.fromkeys((number, *self.stop_ids)))

    def prompt_ids(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """Tokens to generate from, as in training: of a model of plain texts, the last message alone is continued.

        Raises:
            UserError: the template refuses the messages.
        """
        way, _, detail = self.asked_as.partition(":")
        if way == "text":
            before, _, after = (detail or PROMPT).partition(PROMPT)
            text = self._rows.text_prompt(before + messages[-1].content + after)
        elif detail and add_generation_prompt:
            text = self.render(messages) + detail
        else:
            text = self.render(messages, add_generation_prompt=add_generation_prompt)
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Tokens as text."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def token_of(self, number: int) -> str:
        """The text of a token."""
        return self._tokenizer.id_to_token(number) or "?"

    def tokens_beyond(self, embedding_rows: int) -> list[str]:
        """Tokens whose ids are past the last row of an embedding, in the order of their ids."""
        added = self._tokenizer.get_added_tokens_decoder()
        if max(self.vocab_size - 1, *added, 0) < embedding_rows:
            return []
        past = {number: token for token, number in self._tokenizer.get_vocab().items() if number >= embedding_rows}
        return [past[number] for number in sorted(past)]

    def encode(self, conversation: Conversation, max_length: int | None = None) -> TokenizedExample:
        """One example in at most ``max_length`` tokens.

        Raises:
            UserError: the template refuses the row, or does not show where its answers are.
        """
        try:
            rendered = self._rows.rendered(conversation)
        except RowRejected as fault:
            raise UserError(f"row {conversation.line}: {fault.reason}", fault.fix) from fault
        return self._example(rendered, self._tokenizer.encode(rendered.text, add_special_tokens=False), max_length)

    def encode_all(
        self,
        conversations: Sequence[Conversation],
        max_length: int | None = None,
        progress: Progress | None = None,
        *,
        file: str = "data",
        rejected: list[BadRow] | None = None,
    ) -> list[TokenizedExample]:
        """All examples, in order, of at most ``max_length`` tokens. ``progress`` gets (rows done, rows in all).

        With a list in ``rejected``, rows that the template refuses are added to it and come back as empty examples.

        Raises:
            BadRows: the template refuses rows, told under the name ``file``, and there is no ``rejected``.
        """
        examples: list[TokenizedExample] = []
        for chunk in self._rendered_chunks(conversations, file, rejected):
            examples += self._encode_chunk(chunk, max_length)
            if progress:
                progress(len(examples), len(conversations))
        return examples

    def count_tokens(
        self,
        conversations: Sequence[Conversation],
        max_length: int,
        seed: int = 42,
        *,
        file: str = "data",
        rejected: list[BadRow] | None = None,
    ) -> LengthSample:
        """The token counts of what ``encode_all`` would make without a cut, in order; refused rows as there.

        Of many rows only some are encoded, chosen by ``seed``: the counts of the others are those of rows like them,
        while the counts of the longest row, and of all that are longer than ``max_length``, are sure to be their own.

        Raises:
            BadRows: as ``encode_all``.
        """
        chunks = self._rendered_chunks(conversations, file, rejected)
        bounds = TokenBounds(self._tokenizer) if can_bound(self._tokenizer) else None
        return sample_lengths([row for chunk in chunks for row in chunk], self._count, bounds, max_length, seed)

    def _rendered_chunks(
        self, conversations: Sequence[Conversation], file: str, rejected: list[BadRow] | None
    ) -> Iterator[list[RenderedExample]]:
        """All rows as text, some at a time; refused ones are empty, and told when all were looked at."""
        refused: list[BadRow] = []
        for first in range(0, len(conversations), CHUNK_ROWS):
            chunk = conversations[first : first + CHUNK_ROWS]
            yield [self._rendered_or_empty(row, file, refused) for row in chunk]
        if refused and rejected is None:
            raise BadRows(refused, len(conversations))
        if rejected is not None:
            rejected += refused

    def _rendered_or_empty(self, conversation: Conversation, file: str, refused: list[BadRow]) -> RenderedExample:
        try:
            return self._rows.rendered(conversation)
        except RowRejected as fault:
            tools = {"tools": conversation.tools} if conversation.tools else {}
            raw = json.dumps({"messages": as_dicts(conversation.messages), **tools}, ensure_ascii=False)
            refused.append(fault.row(conversation.file or file, conversation.line, raw, conversation.number))
            return RenderedExample("", [], False)

    def _count(self, rendered: Sequence[RenderedExample]) -> list[TokenCounts]:
        counts: list[TokenCounts] = []
        for first in range(0, len(rendered), CHUNK_ROWS):
            chunk = rendered[first : first + CHUNK_ROWS]
            encodings = self._tokenizer.encode_batch([row.text for row in chunk], add_special_tokens=False)
            counts += (
                token_counts_of(row, tokens, self.stop_ids) for row, tokens in zip(chunk, encodings, strict=True)
            )
        return counts

    def _encode_chunk(self, rendered: Sequence[RenderedExample], max_length: int | None) -> list[TokenizedExample]:
        encodings = self._tokenizer.encode_batch([row.text for row in rendered], add_special_tokens=False)
        return [self._example(row, tokens, max_length) for row, tokens in zip(rendered, encodings, strict=True)]

    def _example(self, rendered: RenderedExample, tokens: "Encoding", max_length: int | None) -> TokenizedExample:
        ids = tokens.ids
        supervised = [rendered.supervise_all] * len(ids)
        if rendered.spans:
            fill_spans(supervised, not rendered.supervise_all, rendered.spans, tokens.offsets, ids, self.stop_ids)
        if rendered.asked:
            self._count_asked(rendered.text, rendered.asked, tokens)
        supervised[:1] = [False] * len(ids[:1])  # nothing comes before the first token to predict it from
        return TokenizedExample(input_ids=ids, supervised=supervised).truncated_to(max_length)

    def _count_asked(self, text: str, asked: tuple[int, int], tokens: "Encoding") -> None:
        """Count what stands from the header of the last answer to its first supervised token: so it is asked for."""
        first = first_inside(asked[1], tokens.offsets)
        end = tokens.offsets[first][0] if first < len(tokens.offsets) else asked[1]
        swallowed = text[asked[1] : end]  # a token may begin in what asks and end in white space behind it
        self._rows.tally.asked[text[asked[0] : end if swallowed.isspace() else asked[1]]] += 1
