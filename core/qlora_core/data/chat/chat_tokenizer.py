"""Conversations to supervised tokens: one rendering for training, evaluation and chat."""

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_core.data.bad_rows import BadRow, BadRows, Reject
from qlora_core.data.chat.answer_spans import OTHER_TEMPLATE, SpanFinder, Unlocatable, as_messages
from qlora_core.data.chat.chat_template import TemplateFault
from qlora_core.data.chat.choose_template import TemplateChoice, choose_template
from qlora_core.data.chat.tokenizer_files import TokenizerFiles, read_tokenizer
from qlora_core.data.examples import Encoded, Rendered, mark
from qlora_core.data.lengths.length_sampling import LengthSample, survey
from qlora_core.data.lengths.token_bounds import TokenBounds, can_bound
from qlora_core.data.lengths.token_counts import TokenCounts, token_counts_of
from qlora_core.data.schema import Conversation, Turn
from qlora_profiles.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Encoding

CHUNK_ROWS = 1000
Progress = Callable[[int, int], None]


class ChatTokenizer:
    """A model's tokenizer with the chat template that the run uses.

    ``template`` is the jinja text, ``template_name`` and ``template_source`` say which one it is and why.
    ``stop_tokens`` and ``stop_ids`` are what generation ends on: the trained end of turn first.
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
        Raises ``UserError``.
        """
        files = read_tokenizer(Path(path))
        return cls(files, choose_template(files, chat_template, today))

    @property
    def tells_date(self) -> bool:
        """Whether the template writes the present date, so that ``today`` matters."""
        return self._template.tells_date

    def render(self, turns: Sequence[Turn], *, add_generation_prompt: bool = False) -> str:
        """Turns as text. Raises ``UserError`` where the template refuses them."""
        try:
            return self._template.render(as_messages(turns), add_generation_prompt=add_generation_prompt)
        except TemplateFault as error:
            raise UserError(f"the chat template refuses: {error}", OTHER_TEMPLATE) from error

    def prompt_ids(self, turns: Sequence[Turn], add_generation_prompt: bool = True) -> list[int]:
        """Tokens to generate from, rendered as in training."""
        text = self.render(turns, add_generation_prompt=add_generation_prompt)
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Tokens as text."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def encode(self, conversation: Conversation, max_length: int | None = None) -> Encoded:
        """One example in at most ``max_length`` tokens. Raises ``UserError`` where its answers cannot be found."""
        try:
            rendered = self._rendered(conversation)
        except Reject as fault:
            raise UserError(f"row {conversation.line}: {fault.reason}", fault.fix) from fault
        return self._encoded(rendered, self._tokenizer.encode(rendered.text, add_special_tokens=False), max_length)

    def encode_all(
        self,
        conversations: Sequence[Conversation],
        max_length: int | None = None,
        progress: Progress | None = None,
        *,
        file: str = "data",
        rejected: list[BadRow] | None = None,
    ) -> list[Encoded]:
        """All examples, in order. ``progress`` is called with (rows done, rows in all).

        Rows that the template refuses raise ``BadRows`` under the name ``file``; with a list in
        ``rejected`` they are added to it instead, and come back as empty examples.
        """
        encoded: list[Encoded] = []
        for chunk in self._rendered_chunks(conversations, file, rejected):
            encoded += self._encode_chunk(chunk, max_length)
            if progress:
                progress(len(encoded), len(conversations))
        return encoded

    def measure_all(
        self,
        conversations: Sequence[Conversation],
        max_length: int,
        seed: int = 42,
        *,
        file: str = "data",
        rejected: list[BadRow] | None = None,
    ) -> LengthSample:
        """The extents of what ``encode_all`` would make without a cut, in order; refused rows as there.

        Of many rows only some are encoded, chosen by ``seed``: the extents of the others are those of rows like
        them, while the longest row, and all that are longer than ``max_length``, are sure to be themselves.
        """
        chunks = self._rendered_chunks(conversations, file, rejected)
        bounds = TokenBounds(self._tokenizer) if can_bound(self._tokenizer) else None
        return survey([row for chunk in chunks for row in chunk], self._count, bounds, max_length, seed)

    def _rendered(self, conversation: Conversation) -> Rendered:
        """Raises ``Reject``."""
        if conversation.text is not None:
            return self._rendered_text(conversation.text)
        turns = conversation.turns
        try:
            text, spans = self._spans.locate(turns)
        except TemplateFault as fault:
            raise Reject(f"the chat template refuses: {fault}", fix=OTHER_TEMPLATE) from fault
        except Unlocatable as fault:
            raise Reject(str(fault), fix=OTHER_TEMPLATE) from fault
        wanted = [span[1:] for span in spans if turns[span.turn].supervised != conversation.whole]
        return Rendered(text, wanted, conversation.whole)

    def _rendered_text(self, text: str) -> Rendered:
        """Plain text as a model meets it in pretraining: bos where the tokenizer adds it, and an end."""
        special = self._files.special_tokens
        bos = special.get("bos_token", "") if self._files.adds_bos else ""
        end = special.get("eos_token", self.stop_tokens[0])
        return Rendered(bos + text.removeprefix(bos).removesuffix(end) + end, [], whole=True)

    def _rendered_chunks(
        self, conversations: Sequence[Conversation], file: str, rejected: list[BadRow] | None
    ) -> Iterator[list[Rendered]]:
        """All rows as text, some at a time; refused ones are empty, and told when all were looked at."""
        bad: list[BadRow] = []
        for first in range(0, len(conversations), CHUNK_ROWS):
            chunk = conversations[first : first + CHUNK_ROWS]
            yield [self._rendered_or_empty(row, file, bad) for row in chunk]
        if bad and rejected is None:
            raise BadRows(bad, len(conversations))
        if rejected is not None:
            rejected += bad

    def _rendered_or_empty(self, conversation: Conversation, file: str, bad: list[BadRow]) -> Rendered:
        try:
            return self._rendered(conversation)
        except Reject as fault:
            raw = json.dumps({"messages": as_messages(conversation.turns)}, ensure_ascii=False)
            bad.append(fault.row(file, conversation.line, raw))
            return Rendered("", [], False)

    def _count(self, rendered: Sequence[Rendered]) -> list[TokenCounts]:
        extents: list[TokenCounts] = []
        for first in range(0, len(rendered), CHUNK_ROWS):
            chunk = rendered[first : first + CHUNK_ROWS]
            encodings = self._tokenizer.encode_batch([row.text for row in chunk], add_special_tokens=False)
            extents += (
                token_counts_of(row, tokens, self.stop_ids) for row, tokens in zip(chunk, encodings, strict=True)
            )
        return extents

    def _encode_chunk(self, rendered: Sequence[Rendered], max_length: int | None) -> list[Encoded]:
        encodings = self._tokenizer.encode_batch([row.text for row in rendered], add_special_tokens=False)
        return [self._encoded(row, tokens, max_length) for row, tokens in zip(rendered, encodings, strict=True)]

    def _encoded(self, rendered: Rendered, tokens: "Encoding", max_length: int | None) -> Encoded:
        ids = tokens.ids
        supervised = [rendered.whole] * len(ids)
        if rendered.spans:
            mark(supervised, not rendered.whole, rendered.spans, tokens.offsets, ids, self.stop_ids)
        supervised[:1] = [False] * len(ids[:1])  # nothing comes before the first token to predict it from
        return Encoded(input_ids=ids, supervised=supervised).cut_to(max_length)
