"""Conversations to supervised tokens: one rendering for training, evaluation and chat."""

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_core.data.bad_rows import BadRow, BadRows, RowRejected
from qlora_core.data.chat.answer_spans import OTHER_TEMPLATE, SpanFinder, Unlocatable, as_dicts
from qlora_core.data.chat.chat_template import TemplateFault
from qlora_core.data.chat.choose_template import TemplateChoice, choose_template
from qlora_core.data.chat.tokenizer_files import TokenizerFiles, read_tokenizer
from qlora_core.data.examples import RenderedExample, TokenizedExample, fill_spans
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

    ``template`` is the jinja text, ``template_name`` and ``template_source`` say which one it is and why.
    ``stop_tokens`` and ``stop_ids`` are what generation ends on: the trained end of an answer first.
    """

    def __init__(self, files: TokenizerFiles, choice: TemplateChoice) -> None:
        self._files = files
        self._tokenizer = files.tokenizer
        self._template = choice.template
        self.template = choice.template.source
        self.template_name = choice.name
        self.template_source = choice.reason
        ends = dict.fromkeys((choice.stop_token, *files.end_tokens))
        ids = {token: self._tokenizer.token_to_id(token) for token in ends}
        self.stop_tokens = [token for token, number in ids.items() if number is not None]
        self.stop_ids = [number for number in ids.values() if number is not None]
        self.vocab_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self._spans = SpanFinder(choice.template, self.stop_tokens)

    @classmethod
    def from_folder(cls, path: Path, chat_template: str | None = None, *, today: date | None = None) -> "ChatTokenizer":
        """Load the tokenizer of a model folder, without transformers.

        ``chat_template`` is one of our own by name, or a .jinja file; ``None`` takes the tokenizer's own.
        ``today`` freezes the date that some templates write, so that a later run renders the same text.

        Raises:
            UserError: the folder has no tokenizer or a damaged one, or no template that ends an answer can be had.
        """
        files = read_tokenizer(Path(path))
        return cls(files, choose_template(files, chat_template, today))

    @property
    def special_tokens(self) -> list[str]:
        """The texts of all tokens that are no text of their own: ends, turn markers, padding."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        return [token.content for token in added if token.special]

    @property
    def tells_date(self) -> bool:
        """Whether the template writes the present date, so that ``today`` matters."""
        return self._template.tells_date

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """Messages as text.

        Raises:
            UserError: the template refuses them.
        """
        try:
            return self._template.render(as_dicts(messages), add_generation_prompt=add_generation_prompt)
        except TemplateFault as error:
            raise UserError(f"the chat template refuses: {error}", OTHER_TEMPLATE) from error

    def prompt_ids(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """Tokens to generate from, rendered as in training.

        Raises:
            UserError: the template refuses the messages.
        """
        text = self.render(messages, add_generation_prompt=add_generation_prompt)
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Tokens as text."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def encode(self, conversation: Conversation, max_length: int | None = None) -> TokenizedExample:
        """One example in at most ``max_length`` tokens.

        Raises:
            UserError: the template refuses the row, or does not show where its answers are.
        """
        try:
            rendered = self._rendered(conversation)
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

    def _rendered(self, conversation: Conversation) -> RenderedExample:
        """Raises ``RowRejected``."""
        if conversation.text is not None:
            return self._rendered_text(conversation.text)
        messages = conversation.messages
        try:
            text, spans = self._spans.locate(messages)
        except TemplateFault as fault:
            raise RowRejected(f"the chat template refuses: {fault}", fix=OTHER_TEMPLATE) from fault
        except Unlocatable as fault:
            raise RowRejected(str(fault), fix=OTHER_TEMPLATE) from fault
        wanted = [span[1:] for span in spans if messages[span.message].supervised != conversation.supervise_all]
        return RenderedExample(text, wanted, conversation.supervise_all)

    def _rendered_text(self, text: str) -> RenderedExample:
        """Plain text as a model meets it in pretraining: bos where the tokenizer adds it, and an end."""
        special = self._files.special_tokens
        bos = special.get("bos_token", "") if self._files.adds_bos else ""
        end = special.get("eos_token", self.stop_tokens[0])
        return RenderedExample(bos + text.removeprefix(bos).removesuffix(end) + end, [], supervise_all=True)

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
            return self._rendered(conversation)
        except RowRejected as fault:
            raw = json.dumps({"messages": as_dicts(conversation.messages)}, ensure_ascii=False)
            refused.append(fault.row(file, conversation.line, raw, conversation.number))
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
        supervised[:1] = [False] * len(ids[:1])  # nothing comes before the first token to predict it from
        return TokenizedExample(input_ids=ids, supervised=supervised).truncated_to(max_length)
