"""The demo's bundled files: what a wheel carries must load, match its generator and leave the test prompts unseen."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import yaml

from make_demo import cafe, make_base, make_data, small_talk

DEMO = make_data.SHIPPED
BASE = DEMO / "base"
MEBIBYTE = 1024**2


def read_rows(name: str) -> list[make_data.Row]:
    lines = (DEMO / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def prompts(rows: list[make_data.Row]) -> list[str]:
    return [row["messages"][0]["content"] for row in rows]


def test_the_assets_are_small_enough_to_ship() -> None:
    files = [path for path in DEMO.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 8 * MEBIBYTE


def test_the_bundled_data_is_what_the_generator_writes(tmp_path: Path) -> None:
    make_data.write_data(tmp_path)
    for name in ("train.jsonl", "held_out.jsonl"):
        bundled = (DEMO / "data" / name).read_text(encoding="utf-8")
        assert (tmp_path / name).read_text(encoding="utf-8") == bundled


def test_another_seed_gives_other_data() -> None:
    assert prompts(make_data.held_out_rows(1)) != prompts(make_data.held_out_rows(2))


def test_rows_are_well_formed() -> None:
    for row in read_rows("train") + read_rows("held_out"):
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert roles
        assert all(message["content"].strip() == message["content"] != "" for message in row["messages"])


def test_held_out_prompts_are_new() -> None:
    train, held_out = prompts(read_rows("train")), prompts(read_rows("held_out"))
    assert len(held_out) >= 100
    assert len(set(held_out)) == len(held_out)
    assert not set(train) & set(held_out)
    assert make_data.SAMPLE_PROMPT not in train + held_out


def test_held_out_guests_and_items_are_unknown_to_the_training_rows() -> None:
    train = json.dumps(read_rows("train"))
    assert not [name for name in cafe.UNSEEN_NAMES if f" {name}" in train]
    assert not [item for item in cafe.UNSEEN_ITEMS if item in train]
    for prompt in prompts(read_rows("held_out")):
        assert any(name in prompt for name in cafe.UNSEEN_NAMES)


def test_held_out_prompts_all_ask_for_the_new_skill() -> None:
    for row in read_rows("held_out"):
        prompt, answer = (message["content"] for message in row["messages"])
        assert prompt.startswith("Ticket: ")
        assert answer.startswith(("T", "GO"))


def test_the_base_corpus_never_shows_the_new_skill() -> None:
    rng = Random(7)
    turns = [turn for _ in range(3000) for turn in small_talk.conversation(rng)]
    assert not [prompt for prompt, _ in turns if prompt.startswith("Ticket")]


def test_a_ticket_says_place_name_and_positions() -> None:
    lines = (cafe.Line(2, "lemon cake", None), cafe.Line(1, "ginger tea", "without sugar"))
    assert cafe.ticket(cafe.Order("Rosa", 7, lines)) == "T7 | Rosa | 2x lemon cake, 1x ginger tea (no sugar)"
    assert cafe.ticket(cafe.Order("Rosa", None, lines[:1])) == "GO | Rosa | 2x lemon cake"


def test_the_base_loads_in_plain_transformers_and_stops() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(BASE)
    model = transformers.AutoModelForCausalLM.from_pretrained(BASE)
    chat = [{"role": "user", "content": "Hello!"}]
    encoded = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**encoded, max_new_tokens=40)[0, encoded["input_ids"].shape[1] :]
    assert answer[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>") == model.generation_config.eos_token_id
    assert tokenizer.decode(answer, skip_special_tokens=True) == "Hello! What can I bring you?"


def test_every_quantised_layer_fits_nf4_blocks() -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(BASE)
    weights = [parameter for name, parameter in model.named_parameters() if name.endswith("_proj.weight")]
    assert len(weights) == 7 * model.config.num_hidden_layers
    for weight in weights:
        assert weight.numel() >= 4096
        assert weight.shape[1] % 64 == 0
        assert weight.shape[0] % 32 == 0


def test_the_template_supervises_the_answer_and_its_stop_token_only() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(BASE)
    row = read_rows("held_out")[0]
    encoded = tokenizer.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
    pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    supervised = tokenizer.decode([token for token, mask in pairs if mask])
    assert supervised == row["messages"][1]["content"] + "<|im_end|>"


def test_the_recipe_is_flat_and_known() -> None:
    recipe = yaml.safe_load((DEMO / "recipe.yaml").read_text(encoding="utf-8"))
    expected = "max_length examples_per_step epochs learning_rate lora_r lora_alpha target_modules warmup_ratio"
    assert set(recipe) == {*expected.split(), "lr_scheduler", "seed"}
    assert all(isinstance(value, int | float | str) for value in recipe.values())


def test_a_short_training_of_a_new_base_lowers_its_loss(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = make_base.make_tokenizer(3)
    model = make_base.make_model(tokenizer, 3)
    ids, labels = next(make_base.batches(tokenizer, 3))
    untrained = model(input_ids=ids, labels=labels, use_cache=False).loss.item()
    make_base.train(model, tokenizer, 15, 3)
    assert model(input_ids=ids, labels=labels, use_cache=False).loss.item() < untrained - 0.3
    make_base.save(model, tokenizer, tmp_path)
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path).config.tie_word_embeddings


def test_the_tokenizer_is_the_same_from_the_same_seed() -> None:
    bundled = json.loads((BASE / "tokenizer.json").read_text(encoding="utf-8"))
    made = json.loads(make_base.make_tokenizer(make_data.SEED).backend_tokenizer.to_str())
    assert made["model"] == bundled["model"]
