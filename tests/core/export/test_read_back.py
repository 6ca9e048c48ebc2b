"""Saved folders as plain transformers and PEFT load them: what was trained passes, every damage is found."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from shutil import copytree
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import save_tiny_model, tiny_model, write_rows

from qlora_core.data import ChatTokenizer, Conversation, Message, ReadOptions, TokenizedExample, read_data
from qlora_core.export.artifacts import BaseRecord
from qlora_core.export.fingerprints import adapter_sums, apart, bit_sum, logits_of, share_kept
from qlora_core.export.merge import merge
from qlora_core.export.merge_witness import MergeWitness, merged_folder
from qlora_core.export.read_back import (
    TOLERANCES,
    Finding,
    Forward,
    ReadBackJob,
    SavedFolder,
    chosen,
    row_for_weights,
    saved_row,
    told,
)
from qlora_core.jobs.read_back import check, ids_in
from qlora_profiles import codec, run_folder

WEIGHTS = {"adapter": "adapter_model.safetensors", "merged": "model.safetensors"}


@dataclass(frozen=True)
class Saved:
    """An adapter and its merged model as a run leaves them, and how they are read back."""

    adapter: SavedFolder
    merged: SavedFolder
    job: ReadBackJob
    witness: MergeWitness


def save(folder: Path, family: str = "qwen3", store: str = "float32", **changes: Any) -> Saved:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = save_tiny_model(folder / "base", family, **changes)
    tiny_model(family, **changes).to(getattr(torch, store)).save_pretrained(str(base))
    chat = ChatTokenizer.from_folder(base)
    data = read_data(ReadOptions(path=str(write_rows(folder / "rows.jsonl")))).conversations
    rows = chosen(list(zip(data, chat.encode_all(data), strict=True)), [])
    saved = [saved_row(chat, row, example.input_ids) for row, example in rows]
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(str(base), dtype="auto"), config).eval()
    model.save_pretrained(str(folder / "adapter"))
    AutoTokenizer.from_pretrained(str(base)).save_pretrained(str(folder / "adapter"))
    shape: dict[str, Any] = {"model_type": family, "hidden_size": 64, "num_layers": 3, "method": "lora"}
    record = BaseRecord(model=str(base), revision=None, fingerprint="f", stop_ids=tuple(chat.stop_ids), **shape)
    codec.save(record, folder / "adapter" / run_folder.BASE_RECORD)
    ids = row_for_weights(saved)
    forward = Forward(
        device="cpu",
        dtype="auto",
        tolerance=TOLERANCES[store],
        sums=adapter_sums(model),
        logits=logits_of(model, ids),
        base=str(base),
    )
    witness = MergeWitness(ids, adapter_sums(model))
    merge(folder / "adapter", folder / "merged", witness=witness)
    return Saved(
        adapter=SavedFolder(path=str(folder / "adapter"), forward=forward),
        merged=merged_folder(folder / "merged", witness, tuple(chat.stop_ids)),
        job=ReadBackJob(rows=saved, folders=[], stop_id=chat.stop_ids[0]),
        witness=witness,
    )


def as_told(job: ReadBackJob, folder: SavedFolder) -> Finding:
    """What comes of it after both went through a file."""
    handed = msgspec.json.decode(msgspec.json.encode(msgspec.structs.replace(job, folders=[folder])), type=ReadBackJob)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in a process of its own
        return check(handed, handed.folders[0])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save(tmp_path_factory.mktemp("saved"))


@pytest.mark.parametrize(
    ("family", "store", "tied"),
    [
        ("qwen3", "float32", False),
        ("qwen2", "bfloat16", True),
        ("llama", "float16", False),
        ("gemma3_text", "bfloat16", True),
    ],
)
def test_what_was_saved_well_passes(family: str, store: str, tied: bool, tmp_path: Path) -> None:
    saved = save(tmp_path, family, store, tie_word_embeddings=tied)
    assert saved.witness.faults() == []
    for folder in (saved.adapter, saved.merged):
        assert as_told(saved.job, folder) == Finding(logits=True)


def settings(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(found | changes), encoding="utf-8")

    return change


def weights(kind: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS[kind])
        change(tensors)
        save_file(tensors, folder / WEIGHTS[kind], metadata={"format": "pt"})

    return changed


def half_zeroed(tensors: dict[str, torch.Tensor]) -> None:
    for name in [*tensors][: len(tensors) // 2]:
        tensors[name].zero_()


def without_a_layer(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if ".layers.1." in name]:
        del tensors[name]


def one_row_changed(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.embed_tokens.weight"][77] *= 1.001


def other_template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text(encoding="utf-8").replace("assistant", "model"), encoding="utf-8")


def other_prompt(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    text = file.read_text(encoding="utf-8")
    assert "<|im_start|>assistant\n{% endif" in text
    file.write_text(text.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant{% endif"), encoding="utf-8")


def without_merges(folder: Path) -> None:
    found = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    found["normalizer"] = {"type": "Lowercase"}
    found["pre_tokenizer"] = {"type": "Whitespace"}
    (folder / "tokenizer.json").write_text(json.dumps(found), encoding="utf-8")


ROPE = {"rope_theta": 1_000_000.0, "rope_type": "default"}


@pytest.mark.parametrize(
    ("kind", "damage", "words"),
    [
        ("adapter", weights("adapter", half_zeroed), "weights are not those that were trained"),
        ("adapter", weights("adapter", without_a_layer), "weights are not those that were trained"),
        ("adapter", settings("adapter_config.json", lora_alpha=4), "weights are not those that were trained"),
        ("adapter", settings("adapter_config.json", use_rslora=True), "weights are not those that were trained"),
        ("adapter", lambda folder: (folder / "adapter_model.safetensors").unlink(), "it cannot be loaded"),
        ("adapter", lambda folder: (folder / "tokenizer.json").unlink(), "its tokenizer cannot be loaded"),
        ("adapter", other_template, "render another text"),
        ("adapter", other_prompt, "render another text"),
        ("adapter", without_merges, "get other tokens"),
        ("adapter", settings("tokenizer_config.json", eos_token="<|im_start|>"), "its eos is '<|im_start|>'"),
        ("merged", settings("config.json", rope_parameters=ROPE), "from the trained model's"),
        ("merged", settings("config.json", rms_norm_eps=0.01), "from the trained model's"),
        ("merged", settings("generation_config.json", eos_token_id=1), "its generation ends on [1]"),
        ("merged", weights("merged", one_row_changed), "1 of "),
        ("merged", lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "it cannot be loaded"),
        ("merged", other_template, "render another text"),
    ],
)
def test_damage_is_found(saved: Saved, kind: str, damage: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    folder = saved.adapter if kind == "adapter" else saved.merged
    copy = Path(copytree(folder.path, tmp_path / kind))
    damage(copy)
    found = as_told(saved.job, msgspec.structs.replace(folder, path=str(copy)))
    assert words in " ".join(found.faults)
    assert found.unchecked == []


def test_a_template_that_writes_the_day_sees_the_day_of_the_training(saved: Saved, tmp_path: Path) -> None:
    copy = Path(copytree(saved.adapter.path, tmp_path / "adapter"))
    file = copy / "chat_template.jinja"
    file.write_text("{{ strftime_now('%Y-%m-%d') }}" + file.read_text(encoding="utf-8"), encoding="utf-8")
    chat = ChatTokenizer.from_folder(copy, today=date(2026, 1, 1))
    said = (Message(role="user", content="hi"), Message(role="assistant", content="ho"))
    row = Conversation(line=1, messages=said)
    rows = [saved_row(chat, row, chat.encode(row).input_ids)]
    assert rows[0].text.startswith("2026-01-01")
    job = ReadBackJob(rows=rows, folders=[], today=date(2026, 1, 1))
    assert check(job, SavedFolder(path=str(copy), why_not="no")).faults == []
    other = msgspec.structs.replace(job, today=date(2026, 1, 2))
    assert "another text" in check(other, SavedFolder(path=str(copy), why_not="no")).faults[0]


def test_plain_text_is_compared_as_a_stranger_gives_it(saved: Saved, tmp_path: Path) -> None:
    chat = ChatTokenizer.from_folder(Path(saved.adapter.path))
    row = Conversation(line=3, text="the quick fox  ", supervise_all=True)
    good = saved_row(chat, row, chat.encode(row).input_ids)
    assert good.plain == row.text
    assert good.ids[-1] == chat.stop_ids[0]
    folder = SavedFolder(path=saved.adapter.path, why_not="no")
    assert check(ReadBackJob(rows=[good], folders=[]), folder).faults == []
    other = msgspec.structs.replace(good, plain="the quick fox")
    assert "row 3" in check(ReadBackJob(rows=[other], folders=[]), folder).faults[0]


def test_a_base_that_is_gone_is_no_fault_of_what_was_saved(saved: Saved) -> None:
    assert saved.adapter.forward
    gone = msgspec.structs.replace(saved.adapter.forward, base="/nowhere/at/all")
    found = as_told(saved.job, msgspec.structs.replace(saved.adapter, forward=gone))
    assert found.faults == []
    assert "its base cannot be loaded" in found.unchecked[0]
    assert told(["a"], [found], 20, 1.0).state == "unchecked"


def test_a_merge_that_lost_the_adapter_is_told_from_rounding(saved: Saved) -> None:
    assert saved.witness._before
    adapted, plain = saved.witness._before
    lost = MergeWitness([])
    lost._before, lost.dtype = (adapted, plain), "bfloat16"
    lost.logits = plain
    assert "from those of its base with the adapter" in lost.faults()[0]
    mixed = [
        [p + 0.02 * (a - p) for a, p in zip(*pair, strict=True)]
        for pair in zip(adapted.values, plain.values, strict=True)
    ]
    weak = msgspec.structs.replace(adapted, values=mixed)
    lost._before = (weak, plain)
    assert apart(weak, plain) < TOLERANCES["bfloat16"]
    assert "it has 0% of what the adapter does" in lost.faults()[0]
    lost.logits = weak
    assert lost.faults() == []
    assert share_kept(weak, adapted, plain) == pytest.approx(0.02, rel=1e-3)


def test_a_sum_of_bits_is_of_every_bit_in_its_place() -> None:
    values = torch.arange(3_000_001, dtype=torch.float32).to(torch.bfloat16)
    swapped = values.clone()
    swapped[[5, 2_900_000]] = values[[2_900_000, 5]]
    sums = [bit_sum(each) for each in (values, swapped, values[:-1], values.float(), values[1:], values.view(1, -1))]
    assert len(set(sums)) == len(sums)
    assert bit_sum(values.clone()) == sums[0]
    assert bit_sum(torch.tensor(3.0)) != bit_sum(torch.tensor(-3.0))


@pytest.mark.parametrize("form", [[1, 2], [[1, 2]], {"input_ids": [1, 2]}, {"input_ids": torch.tensor([[1, 2]])}])
def test_ids_are_found_in_every_form_that_transformers_gives(form: Any) -> None:
    assert ids_in(form) == [1, 2]


def test_rows_are_spread_over_the_data_and_some_were_held_out() -> None:
    rows = [(Conversation(line=n), TokenizedExample(input_ids=[1], supervised=[True])) for n in range(100)]
    assert [row.line for row, _ in chosen(rows[:90], rows[90:])] == [*range(0, 90, 6), *range(90, 100, 2)]
    assert len(chosen(rows[:7], [])) == 7
    long = (Conversation(line=7), TokenizedExample(input_ids=[1] * 30_000, supervised=[True] * 30_000))
    assert chosen([long], []) == []
