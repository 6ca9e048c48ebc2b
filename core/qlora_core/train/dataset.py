"""The data of a run, read again from the file and tokenised: what the plan counted, the core trains on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from qlora_core.data import ChatTokenizer, DataSet, Message, TokenizedExample, split, truncate_all, write_rejected
from qlora_core.data.chat.tokenizer_source import tokenizer_on_disk
from qlora_core.data.facts import source_facts, template_digest
from qlora_core.data.pipeline import tokenize
from qlora_core.data.row_cache import CachedRows
from qlora_core.export.read_back import SavedRow, chosen, saved_row
from qlora_core.session.event_log import EventLog
from qlora_profiles.base_files import base_digests
from qlora_profiles.errors import UserError
from qlora_profiles.facts import DataFacts
from qlora_profiles.plan import RunPlan, other_parts
from qlora_profiles.run_folder import REJECTED_ROWS
from qlora_profiles.settings import Recipe
from qlora_profiles.weight_names import AGAIN

PHASE = "preparing data"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedData:
    """Tokenized examples, and how the model is talked to."""

    train: Sequence[TokenizedExample]
    held_out: Sequence[TokenizedExample]
    chat: ChatTokenizer
    system_prompt: str | None
    read_back: tuple[SavedRow, ...] = ()
    """Some of all rows, uncut, for reading back what will be saved."""

    @property
    def template(self) -> str:
        """The chat template (jinja) that the artifacts ship."""
        return self.chat.template

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer, the trained one first."""
        return tuple(self.chat.stop_ids)

    def prompt_ids(self, prompt: str) -> list[int]:
        """One user message, ready to be answered."""
        system = [Message(role="system", content=self.system_prompt)] if self.system_prompt else []
        return self.chat.prompt_ids([*system, Message(role="user", content=prompt)])


def prepare_data(
    plan: RunPlan,
    output: Path,
    log: EventLog,
    preload: Thread | None = None,
    stop_here: Callable[[], None] = lambda: None,
) -> PreparedData:
    """Read, set bad rows aside, split, tokenise and cut. ``stop_here`` is called now and then, and may raise.

    ``preload`` is waited for before ``datasets`` is used, which looks into modules that others are still importing.

    Raises:
        UserError: the file or the base is not the one that was planned with, or nothing in it can be learned.
    """
    recipe = plan.recipe_values()

    def progress(done: int, total: int) -> None:
        stop_here()
        log.phase(PHASE, done, total)

    data, chat, examples = tokenize(recipe, plan.run_values(), progress, embedding_rows=plan.model.vocab_size)
    check_data(data, plan.data)
    check_base(plan, template_digest(chat))
    if data.rejected:
        write_rejected(output / REJECTED_ROWS, data.rejected)
        log.warn(f"{len(data.rejected)} bad rows set aside in {output / REJECTED_ROWS}")
    train, held_out = split(examples, recipe.val_size, recipe.seed)
    read_back = saved_rows(data, chat, examples, recipe) if plan.run_values().read_back else ()
    if preload is not None:
        preload.join()
    return PreparedData(
        train=CachedRows(truncate_all(train, recipe.max_length)[0]),
        held_out=CachedRows(truncate_all(held_out, recipe.max_length)[0]),
        chat=chat,
        system_prompt=recipe.system_prompt,
        read_back=read_back,
    )


def check_data(data: DataSet, planned: DataFacts) -> None:
    """Refuse data that is no longer what was planned with. Raises UserError, which names the sources that changed."""
    now = data.sources or (source_facts(data),)
    changed = [new.path for new, old in zip(now, planned.sources, strict=False) if new.fingerprint != old.fingerprint]
    if changed or len(now) != len(planned.sources):
        said = ", ".join(changed) or data.path
        raise UserError(f"{said}: changed since this run was planned", "--output ANOTHER-FOLDER")


def saved_rows(
    data: DataSet, chat: ChatTokenizer, examples: Sequence[TokenizedExample], recipe: Recipe
) -> tuple[SavedRow, ...]:
    """Some rows with the text and the tokens that are trained on."""
    train, held_out = split(list(zip(data.conversations, examples, strict=True)), recipe.val_size, recipe.seed)
    return tuple(saved_row(chat, row, example.input_ids) for row, example in chosen(train, held_out))


def check_base(plan: RunPlan, template: str) -> None:
    """Refuse a base that is another one than was planned with: between the processes of a run it may be exchanged.

    ``template`` is the digest of the one that renders the rows.

    Raises:
        UserError: its weights, its tokenizer or its template are others now, or cannot be read.
    """
    folder = tokenizer_on_disk(plan.recipe_values(), plan.run_values())
    try:
        now = base_digests(folder) if folder else {}
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror or error})", AGAIN) from error
    changed = other_parts(plan.base_parts(), now | {"template": template})
    if changed:
        said = f"--model {plan.recipe_values().model}: other {' and '.join(changed)} since this run was planned"
        raise UserError(said, "put it back, or start anew: --output ANOTHER-FOLDER")
