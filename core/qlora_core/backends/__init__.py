"""The registry of backends: who loads the model and computes a micro-batch.

Third parties join through an entry-point group (``BACKEND_GROUP`` of ``qlora_profiles.settings``): an entry is a class
that keeps ``protocol.Backend``, called without arguments. A backend is imported only when it is chosen.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points

from qlora_core.backends.protocol import Backend
from qlora_profiles.errors import EnvironmentProblem, UserError
from qlora_profiles.plan import RunPlan
from qlora_profiles.settings import BACKEND_GROUP
from qlora_profiles.suggest import hint

BUILT_IN = {
    "peft": "qlora_core.backends.peft.backend:PeftBackend",
    "unsloth": "qlora_core.backends.unsloth.backend:UnslothBackend",
}


def available() -> dict[str, Callable[[], Backend]]:
    """Every installed backend by name; calling one imports it."""
    found = {name: _importer(path) for name, path in BUILT_IN.items()}
    found |= {entry.name: _importer(entry.value) for entry in entry_points(group=BACKEND_GROUP)}
    return found


def create(name: str) -> Backend:
    """The backend called ``name``.

    Raises:
        UserError: no such backend is installed.
    """
    known = available()
    if name not in known:
        raise UserError(
            f"backend {name}: not installed; there is {', '.join(known)}{hint(name, known)}", "--backend auto"
        )
    return known[name]()


def begin(plan: RunPlan) -> Backend:
    """The plan's backend, ready to load; to be called before transformers is imported.

    Raises:
        EnvironmentProblem: it cannot run on this machine.
    """
    backend = create(plan.execution_values().backend)
    reason = backend.supported(plan.report)
    if reason is not None:
        raise EnvironmentProblem(f"backend {backend.name} cannot run here: {reason}", "--backend auto")
    backend.prepare(plan)
    return backend


def _importer(path: str) -> Callable[[], Backend]:
    def build() -> Backend:
        module, _, attribute = path.partition(":")
        backend: Backend = getattr(import_module(module), attribute)()
        return backend

    return build
