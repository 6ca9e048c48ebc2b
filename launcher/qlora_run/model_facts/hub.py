"""A model on the hub: in the local cache, or its headers over the network within a few seconds."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from qlora_profiles.base_files import INDEX, SINGLE
from qlora_profiles.errors import EnvironmentProblem, QloraRunError, UserError, first_line
from qlora_profiles.facts import ModelFacts
from qlora_run.model_facts.folder import facts_of, read_folder
from qlora_run.model_facts.safetensors_header import TensorInfo

TRANSPORT_ERROR = "TransportError"
"""The base of what the hub's client raises where nothing answers; which client that is depends on the version."""
GIVE_UP_SECONDS = 3.0
"""How long the hub may take to answer at all: set by hand."""
HEADERS_SECONDS = 20.0
"""How long a hub that answers may take to send all headers: set by hand."""

T = TypeVar("T")


def cached_folder(model: str, cache: Path | None, revision: str | None) -> Path | None:
    """The snapshot of a hub model in the local cache that holds its weights, or ``None``."""
    from huggingface_hub import try_to_load_from_cache

    for name in (SINGLE, INDEX):
        found = try_to_load_from_cache(model, name, cache_dir=cache, revision=revision)
        if isinstance(found, str) and (folder := Path(found).parent).joinpath("config.json").is_file():
            return folder
    return None


def read_cached(model: str, cache: Path | None, revision: str | None) -> ModelFacts | None:
    """Facts from the local cache; ``None`` where the model is not, or not wholly, there."""
    folder = cached_folder(model, cache, revision)
    try:
        return read_folder(folder, model) if folder else None
    except UserError:
        return None  # a download that was cut short; the hub has the rest


def read_hub(model: str, revision: str | None) -> ModelFacts:
    """Facts from the headers that the hub sends, without any weights.

    Raises:
        UserError: no such model, no access to it, no safetensors, or the hub cannot be reached.
    """
    if offline():
        raise not_here(model, "HF_HUB_OFFLINE is set")
    with _Explained(model, revision):
        config = within(GIVE_UP_SECONDS, lambda: _config(model, revision))
        tensors, file_bytes = within(HEADERS_SECONDS, lambda: _headers(model, revision))
    return facts_of(model, config, tensors, file_bytes)


def not_here(model: str, why: str) -> UserError:
    """The error for a model that is neither on this disk nor reachable."""
    fix = "a local folder, HF_ENDPOINT=<mirror>, or: qlora-run demo"
    return UserError(f"--model {model}  not on this disk, {why}", fix)


def offline() -> bool:
    """Whether a person forbade asking the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def _config(model: str, revision: str | None) -> dict[str, Any]:
    from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    answer = get_session().get(
        hf_hub_url(model, "config.json", revision=revision),
        headers=build_hf_headers(),
        timeout=GIVE_UP_SECONDS,
        follow_redirects=True,
    )
    hf_raise_for_status(answer)
    config = json.loads(answer.content)
    if not isinstance(config, dict):
        raise UserError(f"--model {model}  its config.json is not a model's config")
    return config


def _headers(model: str, revision: str | None) -> tuple[dict[str, TensorInfo], int]:
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        metadata = HfApi().get_safetensors_metadata(model, revision=revision, timeout=GIVE_UP_SECONDS)
    finally:
        if shown:
            enable_progress_bars()
    listed = [(name, info) for file in metadata.files_metadata.values() for name, info in file.tensors.items()]
    file_bytes = sum(info.data_offsets[1] - info.data_offsets[0] for _, info in listed)
    return {name: TensorInfo(info.dtype, tuple(info.shape)) for name, info in listed}, file_bytes


def within(seconds: float, work: Callable[[], T]) -> T:
    """``work()`` in a thread that is left behind when it takes longer: a name lookup obeys no timeout.

    Raises:
        TimeoutError: it took longer.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, daemon=True, name="hub")
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError
    return results[0]


class _Explained:
    """Turns what huggingface_hub raises into one line with a way on."""

    def __init__(self, model: str, revision: str | None) -> None:
        self.model = model
        self.revision = revision

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, UserError):
            raise self._explain(error) from error

    def _explain(self, error: Exception) -> QloraRunError:
        for kind, answer in _answers().items():
            if isinstance(error, kind):
                return answer(self, error)
        if any(kind.__name__ == TRANSPORT_ERROR for kind in type(error).__mro__):
            return self.unreachable(error)
        what = f"--model {self.model}  {type(error).__name__}: {first_line(error)}"
        return EnvironmentProblem(what, "qlora-run doctor")

    def said(self, what: str, fix: str) -> UserError:
        """A mistake about this model."""
        return UserError(f"--model {self.model}  {what}", fix)

    def unreachable(self, error: Exception) -> UserError:
        """The hub did not answer, or not with what was asked for."""
        late = isinstance(error, TimeoutError) or "Timeout" in type(error).__name__
        return not_here(self.model, f"hub unreachable{f' (gave up after {GIVE_UP_SECONDS:.0f} s)' if late else ''}")

    def strange(self, error: Exception) -> UserError:
        """The hub answered with an error of its own, or with something that cannot be read."""
        return not_here(self.model, f"the hub answered: {first_line(error)}")


def _answers() -> dict[type[Exception], Callable[[_Explained, Exception], QloraRunError]]:
    """What is said of each kind of error; the first kind that matches counts."""
    from huggingface_hub import errors as hub

    unknown = "check the name; a private one needs: hf auth login"
    return {
        hub.GatedRepoError: lambda to, _: to.said("gated: its owners must let your account in", _accept(to.model)),
        hub.RevisionNotFoundError: lambda to, _: to.said(f"has no revision {to.revision}", "--revision main"),
        hub.RepositoryNotFoundError: lambda to, _: to.said("neither on this disk nor on the hub", unknown),
        hub.NotASafetensorsRepoError: lambda to, _: to.said("no safetensors weights on the hub", "another model"),
        hub.EntryNotFoundError: lambda to, _: to.said("no config.json on the hub", "a model in transformers' format"),
        hub.HFValidationError: lambda to, _: to.said("neither a folder nor a hub id", "a folder, or OWNER/NAME"),
        TimeoutError: _Explained.unreachable,
        ConnectionError: _Explained.unreachable,
        hub.HfHubHTTPError: _Explained.strange,
        hub.SafetensorsParsingError: _Explained.strange,
        ValueError: _Explained.strange,
    }


def _accept(model: str) -> str:
    return f"open https://huggingface.co/{model}, accept, then: hf auth login"
