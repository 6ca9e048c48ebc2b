"""Rendered templates inside plain text: which form they have, and how such a text asks for an answer."""

import re
from collections import Counter
from typing import NamedTuple

PROMPT = "{prompt}"
WORDS = "turns of words"
OPENS_WITHIN = 4000  # characters in which a text that holds a template asks first
FEWEST_ALIKE = 0.2
"""Share of the rows of a form that must open alike, for that opening to be asked with; set by hand."""


class TextForm(NamedTuple):
    """How a text asks: what opens it, the header of the question, and what stands between question and answer."""

    name: str
    opening: str
    header: str
    behind: str


def _form(name: str, question: str, answer: str) -> tuple[str, re.Pattern[str], re.Pattern[str]]:
    return name, re.compile(question), re.compile(answer)


_FORMS = (
    _form("ChatML", r"<\|im_start\|>user\n", r"<\|im_start\|>assistant\n"),
    _form(
        "Llama 3",
        r"<\|start_header_id\|>user<\|end_header_id\|>\n\n",
        r"<\|start_header_id\|>assistant<\|end_header_id\|>\n\n",
    ),
    _form("Gemma", r"<start_of_turn>user\n", r"<start_of_turn>model\n"),
    _form("Harmony", r"<\|start\|>user<\|message\|>", r"<\|start\|>assistant"),
    _form("DeepSeek", r"<｜User｜>", r"<｜Assistant｜>"),
    _form("Command R", r"<\|USER_TOKEN\|>", r"<\|START_OF_TURN_TOKEN\|><\|CHATBOT_TOKEN\|>"),
    _form("Granite", r"<\|start_of_role\|>user<\|end_of_role\|>", r"<\|start_of_role\|>assistant<\|end_of_role\|>"),
    _form("<|user|>", r"<\|user\|>\n?", r"<\|assistant\|>\n?"),
    _form("Mistral", r"\[INST\] ?", r"\[/INST\] ?"),
    _form("Alpaca", r"(?m)^#{2,3} ?Instruction:[ \n]*", r"(?m)^#{2,3} ?(?:Response|Output|Answer):[ \n]*"),
    _form("Guanaco", r"(?m)^### ?(?:Human|User):[ \n]*", r"(?m)### ?Assistant:[ \n]*"),
    _form("Vicuna", r"\bUSER:[ \n]*", r"\bASSISTANT:[ \n]*"),
    _form(WORDS, r"(?m)^(?:Human|User|Question|Q):[ \n]*", r"(?m)^(?:Assistant|AI|Bot|Answer|A):[ \n]*"),
)
_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|end_of_text|>", "<|END_OF_TURN_TOKEN|>", "</s>")
_CLOSING = re.compile(rf"\s*(?:(?:{'|'.join(map(re.escape, _ENDS))})\s*)?\Z")


def form_of(text: str) -> TextForm | None:
    """The form of the template in a text that asks and answers; ``None`` where there is none."""
    for name, question, answer in _FORMS:
        asks = question.search(text, 0, OPENS_WITHIN)
        answers = asks and answer.search(text, asks.end())
        if asks and answers:
            closing = _CLOSING.search(text[asks.end() : answers.start()])
            between = closing.group() if closing else ""
            return TextForm(name, text[: asks.start()], asks.group(), between + answers.group())
    return None


def asked_by(forms: Counter[TextForm], rows: int) -> str | None:
    """How to ask a model that learned so many text rows, with ``{prompt}`` in place of the question.

    ``None`` where most of the rows have no form, or none in common.
    """
    alike: Counter[tuple[str, str]] = Counter()
    for form, count in forms.items():
        alike[(form.header, form.behind)] += count
    (header, behind), most = alike.most_common(1)[0] if alike else (("", ""), 0)
    if most * 2 < rows or not most:
        return None
    same = {form.opening: count for form, count in forms.items() if (form.header, form.behind) == (header, behind)}
    opening, count = Counter(same).most_common(1)[0]
    return (opening if count >= FEWEST_ALIKE * most else "") + header + PROMPT + behind
