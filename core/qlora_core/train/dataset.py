"""The data of a run, read again from the file and tokenised: what the plan counted, the core trains on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from qlora_core.data import ChatTokenizer, Message, TokenizedExample, split, truncate_all, write_rejected
from qlora_core.data.pipeline import tokenize
from qlora_core.data.row_cache import CachedRows
from qlora_core.session.event_log import EventLog
from qlora_profiles.errors import UserError
from qlora_profiles.plan import RunPlan
from qlora_profiles.run_folder import REJECTED_ROWS

PHASE = "preparing data"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedData:
    """Tokenized examples, and how the model is talked to."""

    train: Sequence[TokenizedExample]
    held_out: Sequence[TokenizedExample]
    chat: ChatTokenizer
    system_prompt: str | None

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
        UserError: the file is not the one that was planned with, or nothing in it can be learned.
    """
    recipe = plan.recipe_values()

    def progress(done: int, total: int) -> None:
        stop_here()
        log.phase(PHASE, done, total)

    data, chat, examples = tokenize(recipe, plan.run_values(), progress)
    if data.fingerprint != plan.data.fingerprint:
        raise UserError(f"{data.path}: changed since this run was planned", "--output ANOTHER-FOLDER")
    if data.rejected:
        write_rejected(output / REJECTED_ROWS, data.rejected)
        log.warn(f"{len(data.rejected)} bad rows set aside in {output / REJECTED_ROWS}")
    train, held_out = split(examples, recipe.val_size, recipe.seed)
    if preload is not None:
        preload.join()
    return PreparedData(
        train=CachedRows(truncate_all(train, recipe.max_length)[0]),
        held_out=CachedRows(truncate_all(held_out, recipe.max_length)[0]),
        chat=chat,
        system_prompt=recipe.system_prompt,
    )
