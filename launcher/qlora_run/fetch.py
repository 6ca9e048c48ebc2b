"""Hub sets of a recipe, brought to this disk before anything is planned: a child of the core streams them."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from qlora_core.data.read import wanted_rows
from qlora_core.data.schema import ReadOptions
from qlora_core.data.sources.stored import Stored, folder_of, record_of
from qlora_core.session import child_process
from qlora_profiles.data_source import DataSource, parse_source
from qlora_profiles.errors import EXIT_USER, EnvironmentProblem, QloraRunError, UserError, first_line
from qlora_profiles.jobs import FetchDataJob
from qlora_profiles.settings import Recipe
from qlora_profiles.suggest import did_you_mean
from qlora_run.model_facts.hub import TRANSPORT_ERROR, offline, within

ANSWER_SECONDS = 8.0
"""How long the hub may take to say which commit a set is at: set by hand."""
UNREACHABLE = "HF_ENDPOINT=<mirror>, or a local copy: hf download --repo-type dataset {}, then --data FOLDER"


def bring_hub_sets(recipe: Recipe) -> None:
    """Fetch what the recipe's hub sets lack on this disk; a copy of the commit that the hub has is kept.

    Raises:
        UserError: no such set, no access to it, no such config or split, or the hub cannot be reached.
        EnvironmentProblem: fetching failed.
    """
    for text in recipe.data:
        source = parse_source(text)
        if source.hub:
            _bring(source, recipe, *source.hub)


def is_here(source: DataSource, recipe: Recipe) -> bool:
    """Whether a copy of a hub set lies on this disk, of whatever commit."""
    wanted = wanted_rows(source, ReadOptions.from_recipe(recipe, source.text))
    return record_of(folder_of(source, wanted)) is not None


def _bring(source: DataSource, recipe: Recipe, name: str, revision: str | None) -> None:
    wanted = wanted_rows(source, ReadOptions.from_recipe(recipe, source.text))
    record = record_of(folder_of(source, wanted))
    commit = _commit(source, name, revision, record)
    if record is not None and record.revision == commit:
        return
    job = FetchDataJob(source=source.whole, revision=commit, most=wanted.most, sample=wanted.sample, seed=wanted.seed)
    print(f"fetching {source.whole} ...", file=sys.stderr, flush=True)
    _run(job)


def _commit(source: DataSource, name: str, revision: str | None, record: Stored | None) -> str:
    """The commit that the hub has; that of the copy on this disk where nobody can be asked."""
    if revision is not None and record is not None and record.revision == revision:
        return revision
    try:
        if offline():
            raise UserError(f"--data {source.whole}  HF_HUB_OFFLINE is set, and no copy is on this disk", _way(name))
        return within(ANSWER_SECONDS, lambda: _asked(name, revision))
    except Exception as error:
        problem = _explained(error, source, name, revision)
        if record is not None and _is_unreachable(error):
            print(f"{problem.message}: the copy of commit {record.revision[:8]} is read", file=sys.stderr)
            return record.revision
        raise problem from error


def _asked(name: str, revision: str | None) -> str:
    from huggingface_hub import HfApi

    commit = HfApi().dataset_info(name, revision=revision, timeout=ANSWER_SECONDS).sha
    return commit or revision or "main"


def _is_unreachable(error: Exception) -> bool:
    if isinstance(error, TimeoutError | ConnectionError) or offline():
        return True
    return any(kind.__name__ == TRANSPORT_ERROR for kind in type(error).__mro__)


def _explained(error: Exception, source: DataSource, name: str, revision: str | None) -> QloraRunError:
    from huggingface_hub import errors as hub

    what = f"--data {source.place}  "
    if isinstance(error, QloraRunError):
        return error
    if _is_unreachable(error):
        return UserError(f"{what}not on this disk, hub unreachable", _way(name))
    if isinstance(error, hub.GatedRepoError):
        fix = f"open https://huggingface.co/datasets/{name}, accept, then: hf auth login"
        return UserError(f"{what}gated: its owners must let your account in", fix)
    if isinstance(error, hub.RevisionNotFoundError):
        return UserError(f"{what}has no revision {revision}", f"--data {name}")
    if isinstance(error, hub.RepositoryNotFoundError | hub.HFValidationError):
        fix = "check the name; a private one needs: hf auth login"
        return UserError(f"{what}neither on this disk nor a set on the hub{_near(name)}", fix)
    return UserError(f"{what}the hub answered: {first_line(error)[:160]}", _way(name))


def _way(name: str) -> str:
    return UNREACHABLE.format(name)


def _near(name: str) -> str:
    """``"; did you mean A or B?"`` of sets that the hub finds by the name."""
    try:
        listed = within(ANSWER_SECONDS, lambda: _listed(name.rpartition("/")[2]))
    except Exception:  # nobody is worse off without a guess
        return ""
    near = did_you_mean(name, listed) or listed[:2]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _listed(word: str) -> list[str]:
    from huggingface_hub import HfApi

    return [found.id for found in HfApi().list_datasets(search=word, limit=20)]


def _run(job: FetchDataJob) -> None:
    command = child_process.job_command("qlora_core.jobs.fetch_data", job)
    environment = child_process.python_environment(weak={"HF_HUB_DISABLE_PROGRESS_BARS": "1"})
    child = child_process.start(command, "the fetching of data", output="pipes", environment=environment)
    lines, errors = child.said()
    answer = _answer(lines)
    if answer is None:
        last = errors[-1] if errors else f"exit code {child.exit_code}"
        raise EnvironmentProblem(f"--data {job.source}  could not be fetched: {last}", "qlora-run doctor")
    if "error" in answer:
        kind = UserError if answer.get("exit_code") == EXIT_USER else EnvironmentProblem
        raise kind(str(answer["error"]), answer.get("fix"))


def _answer(lines: Sequence[str]) -> dict[str, Any] | None:
    try:
        found = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
