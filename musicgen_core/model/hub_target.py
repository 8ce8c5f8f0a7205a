"""Check that a repository of the Hugging Face Hub can be uploaded to, before the work that makes its files."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

from musicgen_core.errors import ConfigError, MusicgenError, StorageError
from musicgen_core.language import message
from musicgen_core.model.hub_client import limit_waiting
from musicgen_core.model.hub_transfer import Attempts, reason_of_hub

T = TypeVar("T")

OF_EVERY_REPOSITORY = {".gitattributes", "README.md"}
"""Files that a repository may have before anything is uploaded"""
NEW_TOKEN = message(
    "Create a token with write access at https://huggingface.co/settings/tokens and set it as HF_TOKEN (deployments: "
    "as the Secret block hf-token)"
)
_WRITING_ROLES = ("admin", "write", "contributor")
_WRITE = "repo.write"


@dataclass(frozen=True)
class Target:
    """A repository to upload to.

    Attributes:
        is_private: its visibility if it exists already, which an upload doesn't change; None: it is to be created.
    """

    repo: str
    is_private: bool | None

    @property
    def url(self) -> str:
        return url_of(self.repo)


def url_of(repo: str) -> str:
    """Return the address of a repository's page."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repo}"


def check_target(repo: str, library: str, tag: str) -> Target:
    """Check name, token, permissions and content of a repository to upload to. Changes nothing.

    Args:
        repo: `USER/NAME`.
        library: the library whose files are to be uploaded, as the model card names it.
        tag: a tag of the model cards of this project.

    Raises:
        ConfigError: the repository can't be uploaded to.
        StorageError: the Hub can't be reached.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    _check_name(repo)
    if constants.is_offline_mode():
        raise ConfigError(
            message("nothing can be pushed to {repo} while HF_HUB_OFFLINE is set", repo=repo),
            message("Unset HF_HUB_OFFLINE, or export without pushing"),
        )
    if get_token() is None:
        raise ConfigError(message("pushing to {repo} needs an HF_TOKEN, and none is set", repo=repo), NEW_TOKEN)
    limit_waiting()
    api = HfApi(endpoint=constants.ENDPOINT)
    _check_account(repo, asked(repo, api.whoami))

    def look() -> Any:
        try:
            return api.model_info(repo, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except RepositoryNotFoundError:
            return None

    info = asked(repo, look)
    if info is None:
        return Target(repo, None)
    names = sorted({file.rfilename for file in info.siblings or ()} - OF_EVERY_REPOSITORY)
    if names and not (info.library_name == library and tag in (info.tags or ())):
        raise ConfigError(
            message(
                "{repo} on the Hugging Face Hub is not a MusicGen export for {library} (it has {some})",
                repo=repo,
                library=library,
                some=", ".join(names[:6]),
            ),
            message("Give another name, or delete that repository in its settings"),
        )
    return Target(repo, bool(info.private))


def asked(repo: str, function: Callable[[], T]) -> T:
    """Return what `function` returns, which asks the Hub; transient errors are retried.

    Raises:
        ConfigError: the Hub refuses.
        StorageError: the Hub can't be reached, or the connection broke too often.
    """
    return Attempts(repo, explain=_explain).of(function)


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError:
        is_name = False
    else:
        is_name = repo.count("/") == 1
    if not is_name:
        raise ConfigError(
            message("{repo} is not a valid repository name on the Hugging Face Hub", repo=repo),
            message("Give USER/NAME, of letters, digits, hyphens, underscores and full stops"),
        )


def _check_account(repo: str, account: Mapping[str, Any]) -> None:
    """Check that an account and its token may write to a user's or an organisation's repositories."""
    user, (owner, _, name) = str(account["name"]), repo.partition("/")
    token = account.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise ConfigError(message("the HF_TOKEN of {user} is read-only", user=user), NEW_TOKEN)
    roles = {one["name"]: one.get("roleInOrg") for one in account.get("orgs", ())}
    known = [user, *roles]
    if owner not in known:
        near = get_close_matches(owner, known, n=1) or [user]
        raise ConfigError(
            message("HF_TOKEN belongs to {user}, who can't create repositories under {owner}", user=user, owner=owner),
            message("Give {near}/{name}, or set a token of {owner}", near=near[0], name=name, owner=owner),
        )
    is_fine = token.get("role") != "fineGrained" or _WRITE in _permissions(token, owner)
    if not is_fine or roles.get(owner, "write") not in _WRITING_ROLES:
        raise ConfigError(
            message("the HF_TOKEN of {user} may not write to repositories of {owner}", user=user, owner=owner),
            NEW_TOKEN,
        )


def _permissions(token: Mapping[str, Any], owner: str) -> Sequence[str]:
    """Return the permissions of a fine-grained token on someone's repositories, or on some of these."""
    scopes = token.get("fineGrained", {}).get("scoped", ())
    return [
        permission
        for scope in scopes
        if str(scope.get("entity", {}).get("name", "")).partition("/")[0] == owner
        for permission in scope.get("permissions", ())
    ]


def _answer(error: Exception) -> str:
    """Return the status and the Hub's own words, such as those on an account without storage left."""
    status = getattr(getattr(error, "response", None), "status_code", "")
    said = textwrap.shorten(str(getattr(error, "server_message", None) or ""), 200)
    return f"{status}: {said}" if said else str(status)


def _explain(repo: str, error: Exception, attempts: int) -> MusicgenError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return ConfigError(message("the Hugging Face Hub rejects HF_TOKEN ({status})", status=status), NEW_TOKEN)
    if status in (403, 404):
        return ConfigError(
            message("the Hugging Face Hub refuses HF_TOKEN for {repo} ({status})", repo=repo, status=_answer(error)),
            message(
                "Check that the token has write access (https://huggingface.co/settings/tokens) and the account has "
                "storage left"
            ),
        )
    tried = message(", {attempts} times in a row", attempts=attempts) if attempts > 1 else ""
    return StorageError(
        message(
            "{repo} can't be pushed to the Hugging Face Hub: {reason}{tried}",
            repo=repo,
            reason=reason_of_hub(error),
            tried=tried,
        ),
        message("Check the connection, and run it again"),
    )
