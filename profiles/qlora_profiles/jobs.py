"""What the launcher asks of the core beside a run: a chat, one answer, a merge. Passed as one line of JSON."""

from msgspec import Struct


class ChatJob(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Talk with a trained model, or answer ``prompt`` once and end.

    ``target`` is a run's folder, an adapter or a whole model; ``base`` overrides the base that an adapter
    names. ``load_in_4bit`` ``None`` decides by the card. ``cache`` is the folder of downloaded models, if not the
    hub's usual one.
    """

    target: str
    base: str | None = None
    cache: str | None = None
    merged: bool = False
    load_in_4bit: bool | None = None
    trust_remote_code: bool = False
    prompt: str | None = None
    system_prompt: str | None = None
    temperature: float = 0.7
    top_p: float = 0.9
    max_new_tokens: int = 512
    seed: int | None = None


class MergeJob(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Merge an adapter into its base, in the base's own precision, into the folder ``output``.

    ``cache`` is the folder of downloaded models, if not the hub's usual one.
    ``validate`` compares the merged model's logits with the adapted one's; ``test_prompt`` is answered at the end.
    """

    target: str
    output: str | None = None
    base: str | None = None
    cache: str | None = None
    dtype: str = "auto"
    trust_remote_code: bool = False
    validate: bool = False
    test_prompt: str | None = None


class FetchDataJob(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bring a hub set to this disk.

    ``source`` names it as a person writes it, without a share; ``revision`` is the commit to fetch. ``most`` rows are
    kept, by ``seed`` or the first ones (``sample``); ``None`` keeps all.
    """

    source: str
    revision: str
    most: int | None = None
    sample: str = "random"
    seed: int = 42


class ExactMatchJob(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Count how often models give exactly the answers of ``data``; ``models`` by a name for each."""

    data: str
    models: dict[str, ChatJob]
    max_new_tokens: int = 64
