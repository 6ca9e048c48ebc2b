"""Tokens that the model's embedding has no row for: refused where a row uses one, a note where none does."""

import json
from pathlib import Path

import pytest
from support.models import save_tokenizer
from tokenizers import Tokenizer

from qlora_core.data import ChatTokenizer
from qlora_core.data.pipeline import read_facts, tokenize
from qlora_core.data.token_ids import check_ids
from qlora_profiles.errors import UserError
from qlora_profiles.settings import Recipe, Run

ROWS = 300
PAST, LAST = "<|tool|>", "<|last|>"


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A tokenizer with tokens past a model's 300 embedding rows, and rows that use none of them."""
    save_tokenizer(tmp_path, vocab_size=ROWS - 1)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    filler = [f"<|{number}|>" for number in range(tokenizer.get_vocab_size(), ROWS - 1)]
    tokenizer.add_special_tokens([*filler, LAST, PAST])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    return Recipe(model=str(tmp_path), method="lora", max_length=64, data=(_rows(tmp_path, "fox", LAST),))


def _rows(folder: Path, *answers: str) -> str:
    path = folder / "rows.jsonl"
    lines = [json.dumps({"prompt": "the dog", "completion": answer}) for answer in answers]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def test_tokens_past_the_embedding_are_a_note_where_no_row_has_one(recipe: Recipe) -> None:
    run = Run(output="")
    tokens = ChatTokenizer.from_folder(Path(recipe.model))
    assert tokens.tokens_beyond(ROWS) == [PAST]
    assert tokens.tokens_beyond(ROWS + 1) == []
    notes = read_facts(recipe, run, embedding_rows=ROWS).notes
    assert (
        f"a token of the tokenizer ({PAST}) has no row among the embedding's 300; no row of the data uses it" in notes
    )
    assert not any("embedding" in note for note in read_facts(recipe, run, embedding_rows=ROWS + 1).notes)
    assert len(tokenize(recipe, run, embedding_rows=ROWS).examples) == 2


def test_a_row_with_such_a_token_is_refused_by_plan_and_run(recipe: Recipe, tmp_path: Path) -> None:
    _rows(tmp_path, "fox", f"quick {PAST}")
    said = r"rows\.jsonl, row 2: token '<\|tool\|>' has id 300, the model's embedding 300 rows"
    for read in (read_facts, tokenize):
        with pytest.raises(UserError, match=said):
            read(recipe, Run(output=""), embedding_rows=ROWS)


def test_a_stop_token_that_the_template_writes_counts(recipe: Recipe) -> None:
    with pytest.raises(UserError, match=r"row 1: token .* the model's embedding 2 rows"):
        tokenize(recipe, Run(output=""), embedding_rows=2)


def test_a_prompt_is_looked_at_too(recipe: Recipe) -> None:
    tokens = ChatTokenizer.from_folder(Path(recipe.model))
    check_ids([], ROWS, tokens, "the prompt")
    check_ids([ROWS - 1], ROWS, tokens, "the prompt")
    with pytest.raises(UserError, match="the prompt: token"):
        check_ids([ROWS], ROWS, tokens, "the prompt")
