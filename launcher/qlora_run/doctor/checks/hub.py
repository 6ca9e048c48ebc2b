"""The way to the hub that models come from."""

from qlora_run.doctor import remedies
from qlora_run.doctor.check_context import CheckContext
from qlora_run.doctor.findings import Finding, note, ok, skipped, warn

GATED = ("meta-llama/", "google/gemma", "mistralai/")
"""Models of these makers ask for a token of an account that accepted their terms."""


def endpoint(s: CheckContext) -> Finding:
    """The hub or its mirror answers."""
    hub = s.here.hub
    if hub is None:
        return skipped("not asked" if s.here.looked else "only looked at on this machine")
    if hub.state == "offline":
        return note("HF_HUB_OFFLINE is set: local folders and downloaded models work")
    name = f"{hub.host} (mirror)" if hub.mirror else hub.host
    if hub.state == "answers":
        return ok(f"{name} answers")
    mirror = remedies.environment_variable(s.report, "HF_ENDPOINT", "<mirror>")
    fix = remedies.place(f"{mirror.say.split('  ')[0]}, or a local folder for --model")
    return note(f"{name} is not reachable; local folders work", "no model can be downloaded", fix, hub.said)


def token(s: CheckContext) -> Finding:
    """A token, where the model is one that asks for it."""
    if s.here.token is None:
        return skipped("only looked at on this machine")
    if s.here.token:
        return ok("there is one")
    source = s.plan.model.source if s.plan else ""
    if source.startswith(GATED) and not s.downloaded:
        fix = remedies.command("hf auth login", say="accept the model's terms on its page, then: hf auth login")
        return warn(f"{source} is gated, and there is no token", "its download is refused", fix)
    return ok("none, and none is needed")
