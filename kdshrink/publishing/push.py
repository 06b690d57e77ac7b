"""Pushes results to the Hub: access is checked before the work, files are sent when all are on disk."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from ..errors import HubError, Interrupted, KdshrinkError, Terminated, UsageError
from ..hub.client import use_timeouts
from ..hub.errors import Fault, chain_of, hub_errors, reason
from ..models.source import find_model
from ..output import CHECKPOINTS, name_of

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
_CARD = "README.md"


@dataclass(frozen=True)
class PushResult:
    """The result of a push.

    Attributes:
        commit: The commit with the directory's files.
        changed: Whether any file differed from the Hub's.
        pull_request: The address of the pull request, if one was opened.
    """

    directory: Path
    hub_model_id: str
    url: str
    commit: str
    changed: bool
    pull_request: str | None

    def to_dict(self) -> dict[str, Any]:
        """The keys of --json."""
        content = {item.name: getattr(self, item.name) for item in fields(self)}
        return content | {"directory": str(self.directory)}


@dataclass(frozen=True)
class Destination:
    """The repository and branch that a directory is pushed to.

    Attributes:
        name: ORG/NAME, or a name in the user's own account.
        private: Whether the repository is private if the push creates it.
        revision: The branch; main if None.
        create_pr: Whether to open a pull request instead.
    """

    name: str
    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    token: str | None = field(default=None, repr=False)


def ready(destination: Destination, *, create: bool = True) -> Destination:
    """Check, before any work, that a result may be pushed; creates the repository if it does not exist.

    Args:
        create: False leaves the Hub as it is: then it is not known whether a repository that does not exist
            may be created.

    Returns:
        The destination with its full name, ORG/NAME.

    Raises:
        HubError: The Hub cannot be reached, or refuses the name or the token.
        UsageError: The name cannot be that of a repository.
    """
    what = f"--push-to-hub: {destination.name}"
    with hub_errors(_error_for(what, destination.token, "Nothing was done yet.")):
        return replace(destination, name=_ready_repository(destination, create=create))


def pushed(result: Result, destination: Destination | None) -> Result:
    """Push a command's result, if there is a destination; returns it with the result of the push."""
    if destination is None:
        return result
    done = push_directory(result.output_dir, destination)  # type: ignore[attr-defined]
    return replace(result, pushed=done)  # type: ignore[type-var]


def push_directory(directory: Path, target: Destination) -> PushResult:
    """Upload a directory's files in one commit; unchanged files are not sent again.

    Raises:
        HubError: It failed. The message names the directory and the command to try again.
        Interrupted: A signal came.
    """
    with_token = ", with the same --token" if target.token is not None else ""
    command = push_command(directory, target)
    again = f"{directory} is complete. Push it again{with_token} with:\n{command}"
    try:
        with hub_errors(_error_for(target.name, target.token, again)):
            return _commit(directory, _ready_repository(target), target)
    except Terminated:
        raise Interrupted(f"Stopped by SIGTERM before the push ended. {again}", 143) from None
    except KeyboardInterrupt:
        raise Interrupted(f"Stopped by Ctrl-C before the push ended. {again}", 130) from None


def push_command(directory: Path, target: Destination) -> str:
    """The command that pushes a directory; the token is left out."""
    words = ["kdshrink", "push", str(directory), "--hub-model-id", target.name]
    if target.private:
        words.append("--private")
    if target.revision:
        words += ["--hub-revision", target.revision]
    if target.create_pr:
        words.append("--create-pr")
    return shlex.join(words)


def _error_for(
    what: str, token: str | None, ending: str
) -> Callable[[Fault, Exception], KdshrinkError | None]:
    """Makes the error for a push that failed; `ending` is the advice at its end."""

    def error_for(fault: Fault, error: Exception) -> KdshrinkError | None:
        if fault is Fault.BAD_NAME:
            return UsageError(
                f"{what}: this cannot be a repository's name on the Hub.\n"
                "Give ORG/NAME with --hub-model-id, of letters, digits, '-', '_' and '.'."
            )
        if isinstance(error, KdshrinkError) and not isinstance(error, HubError):
            return None
        # Besides HTTP errors the client raises RuntimeError around an upload, ValueError and KeyError for
        # an answer that it cannot parse; the user needs the advice for each of them.
        known = (HubError, OSError, RuntimeError, ValueError, LookupError)
        if isinstance(error, known) or any(
            type(one).__module__.startswith("httpx") for one in chain_of(error)
        ):
            return HubError(f"{what}: {reason(error, token)}.\n{ending}")
        return None

    return error_for


def _ready_repository(target: Destination, *, create: bool = True) -> str:
    """Create the repository if need be, check that it may be written to, and return its full name."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    name = target.name
    validate_repo_id(name)
    use_timeouts()
    api = HfApi(token=target.token)
    who = api.whoami()
    repo_id = name if "/" in name else f"{who['name']}/{name}"
    if target.create_pr:
        api.auth_check(repo_id)
        return repo_id
    if create:
        repo_id = api.create_repo(repo_id, private=target.private or None, exist_ok=True).repo_id
    elif not api.repo_exists(repo_id):
        return repo_id
    api.auth_check(repo_id, write=True)
    if target.private and not api.model_info(repo_id).private:
        raise HubError(
            "the repository exists already and is public, which --private does not change;"
            " make it private on its page, or give another name"
        )
    return repo_id


def _commit(directory: Path, repo_id: str, target: Destination) -> PushResult:
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=target.token)
    if target.revision:
        api.create_branch(repo_id, branch=target.revision, exist_ok=True)
    before = api.model_info(repo_id, revision=target.revision).sha
    paths = model_files(directory)
    size = sum(path.stat().st_size for path in paths)
    logger.info("pushing %d files (%.1f MB) to %s", len(paths), size / 1e6, repo_id)
    card = _card_for(directory, repo_id)
    done = api.create_commit(
        repo_id,
        [
            CommitOperationAdd(
                path.relative_to(directory).as_posix(),
                card if card is not None and path == directory / _CARD else path,
            )
            for path in paths
        ],
        commit_message=f"Upload {repo_id.partition('/')[2]} with kdshrink",
        revision=target.revision,
        create_pr=target.create_pr,
    )
    return PushResult(
        directory=directory,
        hub_model_id=repo_id,
        url=str(api.endpoint) + f"/{repo_id}",
        commit=done.oid,
        changed=done.oid != before,
        pull_request=done.pr_url,
    )


def model_files(directory: Path) -> list[Path]:
    """The files of a directory that are pushed: all but checkpoints and hidden files."""
    return sorted(
        path
        for path in directory.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(directory).parts)
        and path.relative_to(directory).parts[0] != CHECKPOINTS
    )


def _card_for(directory: Path, repo_id: str) -> bytes | None:
    """The card with the repository's name in place of the directory's, unless it was edited by hand."""
    from .card import model_card

    found = find_model(str(directory.absolute())).record
    path = directory / _CARD
    if found.command is None or not path.is_file():
        return None
    record = found.to_dict()
    if path.read_text(encoding="utf-8") != model_card(name_of(directory), record):
        return None
    return model_card(repo_id, record).encode()
