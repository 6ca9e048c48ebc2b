"""Whether the hub that models come from answers. Without it local folders still work, so it is a note at most."""

import os
import threading
from urllib.parse import urlsplit

from qlora_run.doctor.findings import Finding

GIVE_UP_SECONDS = 3.0
MIRROR = "HF_ENDPOINT=<mirror>, or a local folder for --model"
OFFLINE_WORDS = ("1", "true", "yes", "on")


def findings(give_up_seconds: float = GIVE_UP_SECONDS) -> list[Finding]:
    """Ask the hub's first page; an answer of any kind will do."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in OFFLINE_WORDS:
        seen = "HF_HUB_OFFLINE is set: local folders and downloaded models work"
        return [Finding(id="network", verdict="note", seen=seen)]
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).netloc
    if _answers(constants.ENDPOINT, give_up_seconds):
        return [Finding(id="network", verdict="ok", seen=f"{host} answers")]
    return [Finding(id="network", verdict="note", seen=f"{host} is not reachable; local folders work", fix=MIRROR)]


def _answers(address: str, give_up_seconds: float) -> bool:
    """In a thread that is left behind when it takes longer: looking a name up obeys no timeout."""
    answered = threading.Event()

    def ask() -> None:
        import httpx
        from huggingface_hub import get_session

        try:
            get_session().head(address, timeout=give_up_seconds)
        except httpx.HTTPError:
            return
        answered.set()

    thread = threading.Thread(target=ask, daemon=True, name="network")
    thread.start()
    thread.join(give_up_seconds)
    return answered.is_set()
