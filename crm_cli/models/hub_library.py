"""The hub's library, and what it raises in plain words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from urllib.parse import urlsplit

from crm_cli.errors import EnvironmentProblem, OutputError, UsageError

AGAIN = "run `crm weights fetch` again; what has come is kept"


def library() -> ModuleType:
    """The hub's library, loaded when it is first needed."""
    # It would tell the hub what else is installed, and ask it for a list to find out what started crm.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.file_download
        import huggingface_hub.utils
    except ImportError as error:
        raise EnvironmentProblem(
            f"huggingface_hub: cannot be loaded ({error})",
            code="E_HUB_LIBRARY",
            remedy="pip install 'huggingface-hub>=1.0'",
        ) from error
    except ValueError as error:
        # It reads its environment while it is loaded, and does not say which variable it stumbled over.
        raise EnvironmentProblem(
            f"a variable of the environment that begins with HF_ cannot be read ({error})",
            code="E_HUB_SETTING",
            remedy="look at HF_ENDPOINT, HF_HUB_DOWNLOAD_TIMEOUT, HF_HUB_ETAG_TIMEOUT",
        ) from error
    return huggingface_hub


def endpoint() -> str:
    """The address of the hub or of the mirror in its place."""
    return str(library().constants.ENDPOINT)


def network_error() -> type[Exception]:
    """What every failure of the library's HTTP client is: httpx's before 2.0 of it, httpx2's since."""
    base: type[Exception] = library().errors.HfHubHTTPError.__bases__[0]
    return base


def status_of(error: BaseException) -> int | None:
    """The HTTP status that a hub refused with, if it answered at all."""
    return getattr(getattr(error, "response", None), "status_code", None)


@contextmanager
def in_plain_words(repository: str, revision: str) -> Iterator[None]:
    """Turn what the library and the disk raise into one line that says what to do."""
    errors = library().errors
    _require_address()
    try:
        yield
    except errors.HFValidationError as error:
        raise UsageError(
            f"{repository}: not the name of a repository", code="E_HUB_NAME", remedy="--repo OWNER/NAME"
        ) from error
    except network_error() as error:
        raise _refusal(repository, revision, error) from error
    except (errors.EntryNotFoundError, errors.FileMetadataError) as error:
        # The library could not ask; why is in the cause.
        raise _refusal(repository, revision, error.__cause__ or error) from error
    except OSError as error:
        place = error.filename or library().constants.HF_HUB_CACHE
        raise OutputError(
            f"{place}: {error.strerror or error}",
            code="E_OUTPUT",
            remedy="free space or fix rights, or put HF_HOME on another disk",
        ) from error


def _require_address() -> None:
    try:
        parts = urlsplit(endpoint())
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        # Half an IPv6 address; older versions of the library take it.
        is_address = False
    if not is_address:
        raise EnvironmentProblem(
            f"HF_ENDPOINT={endpoint()}: not an address",
            code="E_HUB_SETTING",
            remedy="set it to https://HOST, or unset it",
        )


def _refusal(repository: str, revision: str, error: BaseException) -> EnvironmentProblem:
    """Why the hub did not give a file."""
    where = f"{repository}@{revision}"
    status = status_of(error)
    if status in (401, 403):
        return _no_permission(where, status)
    if status == 404:
        return EnvironmentProblem(
            f"{where}: {_missing(error)} at {endpoint()}",
            code="E_HUB_MISSING",
            remedy="check --repo, --revision and HF_ENDPOINT",
        )
    if status is not None:
        return EnvironmentProblem(
            f"{where}: {endpoint()} answers {status}", code="E_HUB_UNREACHABLE", remedy=AGAIN
        )
    cause = " ".join(str(error).split()) or "no answer in time"
    return EnvironmentProblem(
        f"{endpoint()}: cannot be reached ({type(error).__name__}: {cause})",
        code="E_HUB_UNREACHABLE",
        remedy=f"check the network or HF_ENDPOINT, then {AGAIN}",
    )


def _no_permission(where: str, status: int) -> EnvironmentProblem:
    """Tell apart who gave no token from whose token does not help."""
    has_token = library().get_token() is not None
    cause = "the token given may not read it" if has_token else "private, gated, or no such repository"
    which = "another token" if has_token else "a token"
    return EnvironmentProblem(
        f"{where}: {endpoint()} refuses it ({status}): {cause}",
        code="E_HUB_TOKEN",
        remedy=f"check the name, or set HF_TOKEN to {which} that may read it",
    )


def _missing(error: BaseException) -> str:
    errors = library().errors
    if isinstance(error, errors.RevisionNotFoundError):
        return "no such revision"
    if isinstance(error, errors.EntryNotFoundError):
        return "not all of the published files are"
    return "no such repository"
