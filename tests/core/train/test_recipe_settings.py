"""Every setting of the recipe changes what it must, from the first step on, on every method and in every start."""

import gc
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.models import CHATML, save_tiny_model, write_rows
from support.recipe_runs import ALL_TURNED, Runs, figures_of

from qlora_profiles import run_folder
from qlora_profiles.errors import EXIT_INTERRUPTED, EXIT_OK
from qlora_profiles.settings import Recipe

METHODS = ("qlora-4", "qlora-8", "lora", "full")
ADAPTERS = METHODS[:3]
UPDATES = ("qlora-4", "full")
"""Adapters in front of every kind of base are updated in one way, whole weights perhaps in another."""


@dataclass(frozen=True, kw_only=True)
class Turned:
    """A setting turned to ``to``, on top of ``others``: ``figure`` must differ at its place ``at``, and not earlier.

    Figures are those of ``figures_of``; ``at`` is 0 for the first step (or the first value there is).
    """

    to: Any
    figure: str
    at: int = 0
    others: dict[str, Any] = field(default_factory=dict)
    methods: tuple[str, ...] = ("lora",)


TURNED = {
    "model": Turned(to="{folder}/other", figure="untrained_loss"),
    "chat_template": Turned(to="{folder}/other.jinja", figure="tokens"),
    "method": Turned(to="full", figure="trainable"),
    "quant_type": Turned(to="fp4", figure="untrained_loss", methods=("qlora-4",)),
    "double_quant": Turned(to=False, figure="untrained_loss", methods=("qlora-4",)),
    "data": Turned(to=("{folder}/others.jsonl",), figure="loss"),
    "data_format": Turned(to="csv", figure="tokens", others={"data": ("{folder}/both.txt",), "data_format": "jsonl"}),
    "field": Turned(to=("messages=others",), figure="tokens", others={"data": ("{folder}/columns.jsonl",)}),
    "ignore": Turned(to=("rationale",), figure="exit_code", others={"data": ("{folder}/reasons.jsonl",)}),
    "encoding": Turned(to="gbk", figure="tokens", others={"data": ("{folder}/chinese.jsonl",), "encoding": "latin-1"}),
    "max_samples": Turned(to=8, figure="tokens"),
    "sample": Turned(to="first", figure="tokens", others={"max_samples": 8}),
    "skip_bad_rows": Turned(to=True, figure="exit_code", others={"data": ("{folder}/damaged.jsonl",)}),
    "system_prompt": Turned(to="be brief", figure="tokens"),
    "loss_on": Turned(to="all", figure="supervised"),
    "val_size": Turned(to=5.0, figure="held_out"),
    "max_length": Turned(to=40, figure="tokens"),
    "examples_per_step": Turned(to=2, figure="tokens"),
    "epochs": Turned(to=0.5, figure="steps", at=2, others={"max_steps": None, "epochs": 0.6, "max_samples": 18}),
    "max_steps": Turned(to=2, figure="steps", at=2),
    "learning_rate": Turned(to=5e-3, figure="rate", methods=METHODS),
    "lr_scheduler": Turned(to="linear", figure="rate", at=1, methods=UPDATES),
    "warmup_ratio": Turned(to=0.9, figure="rate", others={"lr_scheduler": "linear"}),
    "warmup_steps": Turned(to=2, figure="rate", others={"lr_scheduler": "linear"}),
    "weight_decay": Turned(to=10.0, figure="loss", at=1, methods=UPDATES),
    "max_grad_norm": Turned(to=1e-3, figure="loss", at=1, methods=UPDATES, others={"adam_epsilon": 1e-3}),
    "adam_beta1": Turned(to=0.1, figure="loss", at=2, methods=UPDATES),
    "adam_beta2": Turned(to=0.5, figure="loss", at=2, methods=UPDATES),
    "adam_epsilon": Turned(to=1e-2, figure="loss", at=1, methods=UPDATES),
    "seed": Turned(to=7, figure="tokens"),
    "lora_r": Turned(to=8, figure="trainable", methods=ADAPTERS),
    "lora_alpha": Turned(to=4.0, figure="grad_norm", methods=ADAPTERS),
    "lora_dropout": Turned(to=0.5, figure="grad_norm", methods=ADAPTERS, others={"val_size": 0.0}),
    "target_modules": Turned(to=("q_proj",), figure="trainable", methods=ADAPTERS),
    "use_rslora": Turned(to=True, figure="grad_norm", methods=ADAPTERS),
}
ELSEWHERE = {
    "revision": "test_merge.py reads a hub model's revision",
    "optimizer": "8-bit AdamW is computed on cards alone: test_on_card.py",
    "keep": "test_run.py: the adapter of the best step",
    "lora_bias": "one value only",
}
"""Settings whose test lies in another file, and why."""

CASES = [(name, method) for name, turned in TURNED.items() for method in turned.methods]


def test_no_setting_of_the_recipe_is_left_out() -> None:
    assert {*TURNED, *ELSEWHERE} == {one.name for one in msgspec.structs.fields(Recipe)}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models and data files of every kind that the table names."""
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny_model(folder / "model")
    save_tiny_model(folder / "other", seed=1)
    lines = write_rows(folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    write_rows(folder / "others.jsonl", offset=100)
    (folder / "other.jinja").write_text("Chat: " + CHATML, encoding="utf-8")
    (folder / "damaged.jsonl").write_text("\n".join([*lines, "{"]), encoding="utf-8")
    columns = [{"messages": json.loads(line)["messages"]} for line in lines]
    renamed = [row | {"others": [*row["messages"], *row["messages"]]} for row in columns]
    write_lines(folder / "columns.jsonl", renamed)
    reasons = [row | {"rationale": f"because of {i}"} for i, row in enumerate(columns)]
    write_lines(folder / "reasons.jsonl", reasons)
    chinese = [{"prompt": "你好", "completion": "再见" * (1 + i % 5)} for i in range(24)]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in chinese)
    (folder / "chinese.jsonl").write_text(text, encoding="gbk")
    both = ['{"text": "one, two"}', *['{"text": "three, four"}'] * 23]  # as CSV: a header of other columns
    (folder / "both.txt").write_text("\n".join(both), encoding="utf-8")
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def runs(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    made = Runs(inputs, tmp_path_factory.mktemp("runs"))
    made.figures(method="lora")
    gc.freeze()  # each run collects garbage once, and would walk through everything that is imported
    yield made
    gc.unfreeze()


@pytest.mark.parametrize(("name", "method"), CASES)
def test_a_turned_setting_changes_what_it_must(name: str, method: str, runs: Runs) -> None:
    turned = TURNED[name]
    common = {"method": method} | turned.others
    before = runs.figures(**common)[turned.figure]
    after = runs.figures(**(common | {name: turned.to}))[turned.figure]
    assert before[: turned.at] == pytest.approx(after[: turned.at], rel=1e-6)
    assert before[turned.at : turned.at + 1] != pytest.approx(after[turned.at : turned.at + 1], rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("val_size", [0.0, 2.0])
@pytest.mark.parametrize("start", ["resumed", "restarted"])
def test_every_start_computes_the_same_recipe(
    start: str, val_size: float, method: str, runs: Runs, tmp_path: Path
) -> None:
    settings = ALL_TURNED | {"method": method, "val_size": val_size, "save_steps": 2}
    whole = runs.figures(**settings)
    assert runs.train(tmp_path, stop_at=3, **settings) == EXIT_INTERRUPTED
    smaller: dict[str, Any] = {}
    if start == "restarted":  # what a crash leaves: steps were done since the last checkpoint; then smaller
        shutil.rmtree(max(run_folder.checkpoints(tmp_path), key=run_folder.checkpoint_step))
        smaller = {"token_budget": 64, "layers_recomputed": 2}
    assert runs.train(tmp_path, **settings, **smaller) == EXIT_OK
    again = figures_of(tmp_path, EXIT_OK)
    for figure in ("steps", "loss", "grad_norm", "rate", "tokens"):
        assert again[figure] == pytest.approx(whole[figure], rel=1e-5), figure
