"""Whether a library that may be there can be used: missing and broken are told apart."""

from __future__ import annotations

import importlib
import warnings


def why_not_importable(module: str, *, remedy: str) -> str | None:
    """Import a module; say what keeps it from being imported, or None.

    A compiled library that was built for another torch, Python or CUDA is found, and fails as its loader
    sees fit. That must not end whoever only wants to know.

    Args:
        module: Dotted name of the module that is going to be used.
        remedy: What to do where the library is not there at all.
    """
    library = module.partition(".")[0]
    try:
        # What others deprecate is no message of ours, and no failure where warnings are errors.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(library)
            importlib.import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == library:
            return f"not installed: {remedy}"
        return f"found but cannot be imported: {_told(error)}"
    return None


def _told(error: Exception) -> str:
    """Its kind and first line: loaders append pages of what they searched."""
    return f"{type(error).__name__}: {error}".partition("\n")[0].removesuffix(": ")
