"""What is learned of an example, as text that a test can read."""

from collections.abc import Iterator

from qlora_core.data import ChatTokenizer, Encoded


def describe_mask(tokenizer: ChatTokenizer, encoded: Encoded) -> str:
    """The example as text with ``[[`` and ``]]`` around what is learned."""
    return "".join(f"[[{text}]]" if learned else text for learned, text in _texts(tokenizer, encoded))


def supervised_texts(tokenizer: ChatTokenizer, encoded: Encoded) -> list[str]:
    """The stretches of text that are learned, in order."""
    return [text for learned, text in _texts(tokenizer, encoded) if learned]


def _texts(tokenizer: ChatTokenizer, encoded: Encoded) -> Iterator[tuple[bool, str]]:
    """Text of each run. Decoded from the start each time: some decoders change the first token of a text."""
    before = ""
    for learned, _, end in encoded.runs():
        text = tokenizer.decode(encoded.input_ids[:end], skip_special_tokens=False)
        yield learned, text[len(before) :]
        before = text
