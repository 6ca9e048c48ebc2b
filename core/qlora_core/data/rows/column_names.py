"""What columns and keys of messages are called, and what each name says of what it holds."""

import re
from functools import lru_cache
from typing import Literal

from qlora_core.data.schema import KNOWN_COLUMNS, MESSAGE_COLUMNS

Meaning = Literal["known", "metadata", "media", "preference", "ranking", "weight", "matters", "unknown"]


def snake(name: str) -> str:
    """``"Complex CoT"`` and ``"complexCot"`` alike as words with underscores between, in small letters."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"\W+", "_", apart).strip("_").lower()


@lru_cache(maxsize=4096)
def fold(name: str) -> str:
    """A name in small letters without anything between its words."""
    return snake(name).replace("_", "")


def _folded(text: str) -> frozenset[str]:
    return frozenset(map(fold, text.split()))


ALIASES = {
    "system": _folded("system_prompt system_message system_msg system_instruction system_instructions sys_prompt sys"),
    "tools": _folded("functions available_tools available_functions tool_definitions function_definitions"),
    "reasoning": _folded("reasoning_content thinking thought complex_cot reasoning_trace thinking_trace"),
    "history": _folded("chat_history conversation_history dialog_history dialogue_history"),
}
"""Other names of columns whose meaning is certain."""
CANONICAL = {
    **{other: name for name, others in ALIASES.items() for other in others},
    **{fold(name): name for name in (*KNOWN_COLUMNS, *MESSAGE_COLUMNS)},
}

TRAIN_KEYS = ("loss_weight", "weight", "train", "training", "trainable", "loss", "learn", "loss_mask", "supervised")
"""Flags of a message or a row: 1 is learned, 0 is not."""
MASKED_KEYS = ("masked",)
"""Flags the other way round: 1 is not learned."""
WEIGHTS = frozenset(map(fold, (*TRAIN_KEYS, *MASKED_KEYS))) | _folded("sample_weight example_weight")

METADATA = _folded(
    "id ids idx index uid uuid guid source sources origin provenance dataset datasets dataset_name data_source subset"
    " split config category categories subcategory subject domain topic topics tag tags keyword keywords lang langs"
    " language languages locale url urls link links license licence copyright author authors creator annotator title"
    " name date time timestamp timestamps created created_at updated updated_at year version hash checksum md5 sha1"
    " sha256 model model_name models generator provider task_name task_type type kind difficulty level quality views"
    " likes upvotes downvotes length tokens token_count num_tokens num_turns meta metadata info extra extras header"
    " headers toxic redacted toxicity moderation openai_moderation hashed_ip country status flag flags note notes"
    " comment comments remark remarks file filename file_name row row_number line line_number page level_0"
    " index_level_0 unnamed_0 repo repo_name repository"
)
"""Names that say where a row is from or what kind it is. They are left out and told, whatever they hold."""
_WEIGHING_WORDS = _folded("train training trainable learn learnable loss mask masked weight weights supervised ignore")
_METADATA_ENDS = re.compile(
    r"_(ids?|idx|index|uuid|hash|urls?|source|type|count|date|time|at|lang|language|length|len|tokens|version|model|by|configs?)$"
)

MEDIA = _folded(
    "image images img imgs picture pictures photo pixel_values image_path image_paths image_url image_urls image_file"
    " audio audios sound speech wav audio_path audio_url audio_file input_audio video videos video_path video_url"
)
_PREFERENCE = re.compile(
    r"(chosen|rejected|preferred|dispreferred|winner|loser)(_.*)?|.*_(chosen|rejected)|preferences?|kto_tag"
    r"|(response|answer|output|completion|conversation|reply)_?[abjk0-9]|(better|safer)_response_id"
    r"|(good|bad|positive|negative)_(response|answer|output|completion)"
)
RANKING = _folded("score scores rank ranks ranking rankings reward rewards rating ratings advantage")
MATTERS = _folded(
    "passage passages paragraph paragraphs document documents doc docs knowledge background evidence support fact"
    " facts reference references persona personas personality role character scenario situation hint hints rationale"
    " rationales cot chain_of_thought explanation explanations steps few_shot few_shots few_shot_examples shots"
    " demonstrations examples example choices options candidates distractors prefix suffix premise hypothesis schema"
    " table tables label labels constraint constraints guidelines rules criteria rubric critique feedback"
    " revision draft target targets summary answers responses completions outputs generations parent_id mask masks"
    " train_detail training_detail train_on input_ids attention_mask contexts"
)
"""Names of what could shape a prompt or the loss, where no rule says how."""

PLACES = {
    "context": _folded("passage passages paragraph paragraphs document documents doc docs knowledge background")
    | _folded("evidence support fact facts reference references premise schema table tables contexts summary"),
    "system": _folded("persona personas personality role character scenario"),
    "reasoning": _folded("rationale rationales cot chain_of_thought explanation explanations steps"),
}
"""The place in a conversation that a name suggests, for a person to say so with ``--field``."""


@lru_cache(maxsize=4096)
def meaning(name: str) -> Meaning:
    """What a name says of a column or key."""
    words, folded = snake(name), fold(name)
    if folded in CANONICAL:
        return "known"
    if folded in MEDIA:
        return "media"
    if _PREFERENCE.fullmatch(words):
        return "preference"
    for kind, names in _BY_NAME.items():
        if folded in names:
            return kind
    if _METADATA_ENDS.search(words):
        return "metadata"
    return "weight" if _WEIGHING_WORDS.intersection(words.split("_")) else "unknown"


_BY_NAME: dict[Meaning, frozenset[str]] = {
    "ranking": RANKING,
    "weight": WEIGHTS,
    "matters": MATTERS,
    "metadata": METADATA,
}


@lru_cache(maxsize=256)
def names_meaning(names: tuple[str, ...], kinds: tuple[Meaning, ...]) -> tuple[str, ...]:
    """Those of a row's names that say one of ``kinds``."""
    return tuple(name for name in names if meaning(name) in kinds)


def place_of(name: str) -> str | None:
    """The name that ``--field`` could give a column, as far as its own name suggests one."""
    words = snake(name).split("_")
    if "thinking" in words or "reasoning" in words:
        return "reasoning"
    return next((place for place, names in PLACES.items() if fold(name) in names), None)
