"""How a folder comes to the Hub: one commit a push, and nothing where nothing changed.

A push compares the folder with the repository's last revision, uploads what differs, and makes one commit of it, so
that a stranger sees the old revision or the new one and nothing between. Interrupted, it is simply done again.
"""

import json
import logging
import re
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict, Unpack

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # the base class of the HTTP library that this version of huggingface_hub uses
    OfflineModeIsEnabled,
    OIDCError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from eden_hf.data.phi import read_accepted
from eden_hf.hub.refusals import (
    Override,
    Refusal,
    RepoType,
    file_refusals,
    is_hidden,
    local_files,
    phi_refusals,
    refuse,
)

logger = logging.getLogger(__name__)

WAITS = (1, 2, 4, 8)  # seconds before a push that failed is tried again
LAST = ("config.json", "README.md")  # of the operations of a commit


class PublishingError(RuntimeError):
    """The Hub did not take a push; the message says what to do."""


@dataclass(frozen=True)
class PlannedFile:
    """A file of a push: its path in the repository, its bytes, and what becomes of it."""

    path: str
    size: int
    change: Literal["new", "changed", "unchanged", "deleted", "kept"]


@dataclass(frozen=True)
class Push:
    """What a push did, or in a dry run would do.

    Attributes:
        repo_id: The repository.
        files: Every file of the folder, and those of the repository alone, which are kept or deleted.
        commit: The revision that now holds the folder; `None` after a dry run of changes.
        tags: Tags of that revision that were asked for.
    """

    repo_id: str
    files: list[PlannedFile]
    commit: str | None
    tags: tuple[str, ...] = ()

    @property
    def changes(self) -> list[PlannedFile]:
        """The files that differ from the last revision."""
        return [file for file in self.files if file.change not in ("unchanged", "kept")]

    def __str__(self) -> str:
        size = sum(file.size for file in self.changes if file.change != "deleted")
        lines = [f"{file.change:10}{file.size:>14,}  {file.path}" for file in self.files]
        where = f"{self.repo_id} at {self.commit}" if self.commit else f"{self.repo_id}, nothing sent (dry run)"
        return "\n".join([*lines, f"{len(self.changes)} of {len(self.files)} files differ, {size:,} bytes: {where}"])


@dataclass(frozen=True)
class _Remote:
    """The last revision of a repository."""

    head: str
    private: bool
    files: dict[str, RepoFile]


class PushOptions(TypedDict, total=False):
    """How a folder is published.

    Attributes:
        public: Open the repository to everybody, once it is whole.
        tags: Names for the revision, such as `v1.0` or a stage's.
        dry_run: Send nothing; tell what would go.
        delete: Delete what is in the repository and not in the folder; hidden files, the Hub's own, stay.
        allow: What to publish although it should not be: `card`, `pickle`, `weights`, `images`, `files`,
            `paths`.
        accepted: CSV of what may tell of patients, was looked at and may go (`eden_hf.data.phi`).
    """

    public: bool
    tags: Sequence[str]
    dry_run: bool
    delete: bool
    allow: Collection[Override]
    accepted: str | None


def publish(
    folder: Path,
    repo_id: str,
    repo_type: RepoType,
    problems: Iterable[Refusal],
    card: Path | None = None,
    **options: Unpack[PushOptions],
) -> Push:
    """Bring a repository of the Hub to the content of `folder`.

    Args:
        folder: The repository's content. Hidden files stay behind.
        repo_id: `user/name`. A repository that is not there yet is made, private.
        repo_type: `model`, `dataset` or `space`.
        problems: What speaks against it, beside the folder's files.
        card: The `README.md` to publish, where it is not the folder's.
        options: How.

    Raises:
        RefusedError: there are problems, a file is a pickle or at no known path, weights are not finite, or an image
            would go that is none of the package's figures, or that may tell who a patient is.
        ImportError: images would go, and the extra `phi` is not installed, which looks at them.
        PublishingError: no token, or one without rights; a wrong name; a tag that stands elsewhere; a Hub that fails.
            The repository's last revision is the old one or the new one, whole; another push completes it.
    """
    tags, dry_run = tuple(options.get("tags", ())), options.get("dry_run", False)
    refuse(folder, (*problems, *file_refusals(folder, local_files(folder), repo_type)), options.get("allow", ()))
    refuse(folder, phi_refusals(folder, local_files(folder), read_accepted(options.get("accepted"))), ())
    check_access(repo_id, tags, token=not dry_run)
    files = {path: folder / path for path in local_files(folder)} | ({"README.md": card} if card else {})
    push = _Pushing(HfApi(), files, repo_id, repo_type, tags, options.get("delete", False))
    public = options.get("public", False)
    return _planned_here(push) if dry_run else _retried(lambda: push.run(public), repo_id)


def check_access(repo_id: str, tags: Sequence[str] = (), token: bool = True) -> None:
    """Check what can be told without asking the Hub: the names, and that there is a token.

    Raises:
        PublishingError: a name is none, or there is no token, or none by OIDC where that is set.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishingError(f"{repo_id!r} is no name of a repository: {error}") from error
    if repo_id.count("/") != 1:
        raise PublishingError(f"{repo_id!r} is no name of a repository: give it with its owner, user/name")
    for tag in tags:
        if not re.fullmatch(r"[A-Za-z0-9](?:[\w.-]*\w)?", tag) or tag == "main":
            raise PublishingError(f"{tag!r} is no name of a tag: use letters, digits, dots and dashes, such as v1.0")
    try:
        found = get_token()
    except (OIDCError, HTTPError) as error:
        raise PublishingError(
            f"no token by OIDC: {_first_line(error)}; check HF_OIDC_RESOURCE and the trusted publishers of {repo_id}"
        ) from error
    if token and not found:
        raise PublishingError("no Hugging Face token: run `hf auth login`, or set HF_TOKEN to one with write access")


@dataclass(frozen=True)
class _Pushing:
    """One push of `files`, by their paths in the repository; every step may be done again."""

    api: HfApi
    files: dict[str, Path]
    repo_id: str
    repo_type: RepoType
    tags: tuple[str, ...]
    delete: bool

    def plan(self, compared: bool = True) -> tuple[Push, _Remote | None]:
        """What would change, and the repository as it is, if it is; all files are new where it is not `compared`."""
        remote = self._remote() if compared else None
        there = remote.files if remote else {}
        files = [self._planned(path, there.get(path)) for path in self.files]
        theirs = sorted(path for path in there.keys() - self.files.keys() if not is_hidden(path))
        if "processor_config.json" in theirs and not self.delete:  # Python reads it before preprocessor_config.json
            raise PublishingError(
                f"{self.repo_id} holds an earlier model for transformers.js, whose processor_config.json would count "
                "for this one: stage it with --onnx too, or push with --delete"
            )
        files += [PlannedFile(path, there[path].size, "deleted" if self.delete else "kept") for path in theirs]
        plan = Push(self.repo_id, files, None, self.tags)
        if remote and not plan.changes:
            plan = replace(plan, commit=remote.head)
        for tag in self.tags if remote else ():
            if self._tagged(tag) not in (None, plan.commit):
                raise PublishingError(
                    f"the tag {tag} of {self.repo_id} stands at another revision: choose another name, or remove it "
                    f"first (hf repos tag delete {self.repo_id} {tag} --type {self.repo_type})"
                )
        return plan, remote

    def run(self, public: bool) -> Push:
        """Commit what changed, then tag and open the repository as asked."""
        plan, remote = self.plan()
        if remote is None:
            sdk = "static" if self.repo_type == "space" else None
            self.api.create_repo(self.repo_id, repo_type=self.repo_type, private=True, exist_ok=True, space_sdk=sdk)
            plan, remote = self.plan()
            if remote is None:
                raise PublishingError(f"{self.repo_id} is there, but this token may not see it: use its owner's")
        commit = plan.commit or self._commit(plan, remote)
        for tag in self.tags:
            if self._tagged(tag) is None:
                self.api.create_tag(self.repo_id, tag=tag, revision=commit, repo_type=self.repo_type)
        if public and remote.private:
            self.api.update_repo_settings(self.repo_id, private=False, repo_type=self.repo_type)
        return Push(self.repo_id, plan.files, commit, self.tags)

    def _remote(self) -> _Remote | None:
        try:
            info = self.api.repo_info(self.repo_id, repo_type=self.repo_type)
        except RepositoryNotFoundError:
            return None
        tree = self.api.list_repo_tree(self.repo_id, recursive=True, revision=info.sha, repo_type=self.repo_type)
        return _Remote(info.sha or "", bool(info.private), {f.path: f for f in tree if isinstance(f, RepoFile)})

    def _planned(self, path: str, there: RepoFile | None) -> PlannedFile:
        file = self.files[path]
        change = "new" if there is None else "unchanged" if _is_same(file, there) else "changed"
        return PlannedFile(path, file.stat().st_size, change)  # type: ignore[arg-type]

    def _tagged(self, tag: str) -> str | None:
        try:
            return self.api.repo_info(self.repo_id, revision=tag, repo_type=self.repo_type).sha
        except RevisionNotFoundError:
            return None

    def _commit(self, plan: Push, remote: _Remote) -> str:
        """One commit of all changes on top of the revision that they were found against."""
        operations: list = [CommitOperationDelete(file.path) for file in plan.files if file.change == "deleted"]
        added = [file.path for file in plan.files if file.change in ("new", "changed")]
        for path in sorted(added, key=lambda path: (path in LAST, path)):
            operations.append(CommitOperationAdd(path, str(self.files[path])))
        return self.api.create_commit(
            self.repo_id,
            operations,
            commit_message=f"Publish {', '.join(self.tags) or 'with eden_hf'}",
            repo_type=self.repo_type,
            parent_commit=remote.head,
        ).oid


def _is_same(file: Path, there: RepoFile) -> bool:
    """Whether the Hub has the content of `file`, which it tells by git's hash, or of large files by the sha256."""
    if file.stat().st_size != there.size:
        return False
    if there.lfs is None:
        return git_hash(file.read_bytes()) == there.blob_id
    with file.open("rb") as content:
        return sha_fileobj(content).hex() == there.lfs.sha256


def _planned_here(push: _Pushing) -> Push:
    """The plan of a dry run, which needs no Hub."""
    try:
        return push.plan()[0]
    except (HTTPError, RuntimeError, OSError, OIDCError, json.JSONDecodeError) as error:
        if isinstance(error, PublishingError) or _is_local(error):
            raise
        fault = _fault(error)
        if fault.status is not None and not _is_busy(fault.status):
            raise PublishingError(_explained(fault, push.repo_id)) from error
        logger.warning("not compared with the Hub, so that every file counts as new: %s", fault.said)
        return push.plan(compared=False)[0]


def _retried(push: Callable[[], Push], repo_id: str) -> Push:
    """Do `push`, again after a while where the Hub fails for now; its errors as `PublishingError`."""
    for wait in (*WAITS, None):
        try:
            return push()
        except (HTTPError, RuntimeError, OSError, OIDCError, json.JSONDecodeError) as error:
            if isinstance(error, PublishingError | OfflineModeIsEnabled) or _is_local(error):
                raise
            fault = _fault(error)
            if wait is None or not fault.passes:
                raise PublishingError(_explained(fault, repo_id)) from error
            logger.warning("the push failed (%s); trying again in %d s", fault.said, wait)
            time.sleep(wait)
    raise AssertionError("not reached: the last try returns or raises")


def _is_local(error: Exception) -> bool:
    """Whether an error is the operating system's, of a file here; the OSErrors of hf_xet carry no number."""
    return isinstance(error, OSError) and error.errno is not None and not isinstance(error, HTTPError)


class _Fault(NamedTuple):
    """What went wrong: the Hub's answer as far as there was one, and whether it may be gone on the next try.

    Attributes:
        status: HTTP status; `None` without an answer.
        said: In one line.
        passes: Of lost connections, a busy or broken Hub, and a token of its storage, which lives for minutes.
        stored: Whether the storage of large files said it, which has tokens of its own, and not the Hub.
    """

    status: int | None
    said: str
    passes: bool
    stored: bool = False


#: How hf_xet tells of a status, and of the address that answered.
_XET_STATUS = re.compile(r"HTTP status \w+ error \((\d{3})\b.*?(?:domain: (\S+))?$")


def _fault(error: Exception) -> _Fault:
    """The fault behind an error: huggingface_hub wraps HTTP errors of large files, hf_xet has them in its words."""
    http = _http_error(error)
    if isinstance(http, HfHubHTTPError):
        status = http.response.status_code
        return _Fault(status, http.server_message or _first_line(http), _is_busy(status))
    if isinstance(error, json.JSONDecodeError):
        return _Fault(None, "what answered is no JSON: a proxy's or a login page, or a wrong HF_ENDPOINT", True)
    said = _first_line(http or error)
    if match := _XET_STATUS.search(said):
        status, stored = int(match[1]), "xet-write-token" not in (match[2] or "")
        return _Fault(status, said, _is_busy(status) or (stored and status == 401), stored)
    if isinstance(error, PermissionError):  # hf_xet's XetAuthenticationError
        return _Fault(401, said, False)
    return _Fault(None, said, http is not None or isinstance(error, ConnectionError | TimeoutError))


def _http_error(error: BaseException | None) -> HTTPError | None:
    while error is not None and not isinstance(error, HTTPError):
        error = error.__cause__
    return error


def _is_busy(status: int) -> bool:
    return status in (408, 429) or status >= 500


def _explained(fault: _Fault, repo_id: str) -> str:
    """One line: what went wrong, and the mend."""
    status, said, _, stored = fault
    owner, kept = repo_id.partition("/")[0], "no revision is left half made; push again"
    if status is None:
        return f"the push broke off ({said}); {kept}"
    if _is_busy(status):
        return f"the Hub answers {status} ({said}); {kept} later"
    mends = {
        401: "the Hub does not know this token: run `hf auth login --force`, or mend HF_TOKEN",
        403: f"this token may not write to {repo_id}: take one with write access to {owner} "
        "(https://huggingface.co/settings/tokens)",
        404: f"there is no {repo_id} that this token may see: check name and token",
        412: f"somebody pushed to {repo_id} meanwhile: look at it, then push again",
    }
    mend = None if stored else mends.get(status)
    return f"{mend or f'the Hub refused the push; {kept}'} ({status}: {said})"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
