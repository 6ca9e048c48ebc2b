"""Whether the hub that models come from answers."""

import os
import threading
from typing import Literal
from urllib.parse import urlsplit

from msgspec import Struct

GIVE_UP_SECONDS = 3.0
"""Set by hand: longer than a slow answer takes, short enough to wait for."""
OFFLINE_WORDS = ("1", "true", "yes", "on")


class Hub(Struct, frozen=True, kw_only=True):
    """The hub, or the mirror that stands for it; ``said`` is why it does not answer."""

    host: str
    state: Literal["answers", "silent", "offline"]
    mirror: bool = False
    said: str = ""


def look(give_up_seconds: float = GIVE_UP_SECONDS) -> Hub:
    """Ask the hub's first page; an answer of any kind will do. Waits ``give_up_seconds`` at most; never raises."""
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).netloc.rsplit("@", 1)[-1]
    mirror = bool(os.environ.get("HF_ENDPOINT"))
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in OFFLINE_WORDS:
        return Hub(host=host, state="offline", mirror=mirror)
    said = _answers(constants.ENDPOINT, give_up_seconds)
    return Hub(host=host, state="silent" if said else "answers", mirror=mirror, said=said)


def _answers(address: str, give_up_seconds: float) -> str:
    """``""``, or why there is no answer.

    In a thread that is left behind when it takes longer: looking a name up obeys no timeout.
    """
    answers: list[str] = []

    def ask() -> None:
        from huggingface_hub import get_session

        try:
            get_session().head(address, timeout=give_up_seconds)
        except Exception as error:  # of whatever client the hub's library uses in this version
            answers.append(type(error).__name__)
        else:
            answers.append("")

    thread = threading.Thread(target=ask, daemon=True, name="network")
    thread.start()
    thread.join(give_up_seconds)
    return answers[0] if answers else f"no answer in {give_up_seconds:.0f} s"
