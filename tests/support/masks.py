"""What is supervised of an example, as text that a test can read."""

from collections.abc import Iterator

from qlora_core.data import ChatTokenizer, TokenizedExample


def describe_mask(tokenizer: ChatTokenizer, example: TokenizedExample) -> str:
    """The example as text with ``[[`` and ``]]`` around what is supervised."""
    return "".join(f"[[{text}]]" if supervised else text for supervised, text in _texts(tokenizer, example))


def supervised_texts(tokenizer: ChatTokenizer, example: TokenizedExample) -> list[str]:
    """The stretches of text that are supervised, in order."""
    return [text for supervised, text in _texts(tokenizer, example) if supervised]


def _texts(tokenizer: ChatTokenizer, example: TokenizedExample) -> Iterator[tuple[bool, str]]:
    """Text of each segment. Decoded from the start each time: some decoders change the first token of a text."""
    before = ""
    for supervised, _, end in example.segments():
        text = tokenizer.decode(example.input_ids[:end], skip_special_tokens=False)
        yield supervised, text[len(before) :]
        before = text
