"""The backends by name. To add one: a file that executes plans, and a line here."""

from collections.abc import Callable

from loaders.backend import Backend
from loaders.reference import ReferenceBackend
from loaders.synthetic import SyntheticBackend
from prep.errors import InputError


def _dali() -> type[Backend]:
    try:
        from loaders.dali import DaliBackend  # noqa: PLC0415  (an extra, and only where it is asked for)
    except ModuleNotFoundError as error:
        raise InputError("DALI is not installed: `pip install -e '.[cu12]'` (or cu13), or use reference") from error
    return DaliBackend


BACKENDS: dict[str, Callable[[], type[Backend]]] = {
    "dali": _dali,
    "reference": lambda: ReferenceBackend,
    "synthetic": lambda: SyntheticBackend,
}


def find_backend(name: str) -> type[Backend]:
    """The backend of that name.

    Raises:
        InputError: there is none, or it is not installed.
    """
    if name not in BACKENDS:
        raise InputError(f"there is no loader backend {name}: choose from {', '.join(BACKENDS)}")
    return BACKENDS[name]()
