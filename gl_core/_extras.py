"""Optional packages: imported where they are used; one that is missing is named with the command that installs it."""

from importlib import import_module
from types import ModuleType

__all__ = ["require"]


def require(module: str, *, extra: str) -> ModuleType:
    """The imported module.

    Args:
        module: its full name, "scipy.sparse" for instance.
        extra: the extra of this package that installs it: train, rerank, search, sweeps or book.

    Raises:
        ImportError: the module is not installed; the message says how to install it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        name = (error.name or module).partition(".")[0]
        if name != module.partition(".")[0]:
            raise  # the module is there, and one that it needs itself is not
        raise ImportError(f'{name} is not installed: pip install "gl_core[{extra}]"', name=name) from error
