"""A small Hub on the loopback address, in memory, that speaks the endpoints `huggingface_hub` and `hf_xet` upload to.

    with LocalHub() as hub:
        HfApi(endpoint=hub.url, token=WRITE_TOKEN).create_repo("user/name", private=True)

Programs of their own find it through `HF_ENDPOINT`. `hub.fault(...)` breaks requests to come; `hub.requests` lists
those that came, with the range asked for, and the bytes of their bodies. With Xet, `XET_ENVIRONMENT` makes the client
speak the one version of its protocol that is here, and not wait between its own tries.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import unquote

from huggingface_hub.utils.sha import git_hash

WRITE_TOKEN, READ_TOKEN = "hf_may_write", "hf_may_read"
#: As on the real Hub, these are kept as large files whatever their size.
LARGE = (".safetensors", ".parquet", ".png")
XET_ENVIRONMENT = {
    "HF_XET_CLIENT_LEGACY_DIRECT_XORB_UPLOAD": "true",
    "HF_XET_CLIENT_SHARD_API_VERSION": "1",
    "HF_XET_XORB_COMPRESSION_POLICY": "none",
    "HF_XET_DEDUPLICATION_GLOBAL_DEDUP_QUERY_ENABLED": "false",
    "HF_XET_TELEMETRY_ENABLED": "false",
    "HF_XET_CLIENT_RETRY_BASE_DELAY": "1ms",
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1",
}


class File(NamedTuple):
    """One file of a revision."""

    content: bytes
    large: bool

    @property
    def oid(self) -> str:
        """What tells its content: git's hash, or of a large file the sha256."""
        return hashlib.sha256(self.content).hexdigest() if self.large else git_hash(self.content)

    def entry(self, path: str) -> dict:
        size = len(self.content)
        entry = {"type": "file", "path": path, "size": size, "oid": git_hash(self.content)}
        return entry | ({"lfs": {"oid": self.oid, "size": size, "pointerSize": 130}} if self.large else {})


@dataclass
class Repository:
    """Revisions by their hash, oldest first, and the names of some."""

    private: bool
    revisions: dict[str, dict[str, File]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    sdk: str | None = None  # of a Space

    def commit(self, files: dict[str, File], title: str) -> str:
        text = json.dumps([title, len(self.revisions), {path: file.oid for path, file in files.items()}])
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.revisions[sha] = files
        return sha

    @property
    def head(self) -> str:
        return list(self.revisions)[-1]

    @property
    def files(self) -> dict[str, File]:
        return self.revisions[self.head]

    def resolve(self, revision: str) -> str:
        sha = self.head if revision == "main" else self.tags.get(revision, revision)
        if sha not in self.revisions:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha


@dataclass
class Fault:
    """Something that goes wrong with requests whose `METHOD /path` has a match of `pattern`, so many times."""

    kind: str  # a status, or `cut`, `damage`, `lost answer`, `page` (a login page in place of JSON)
    pattern: str
    times: int


class HubError(Exception):
    """An answer other than 200, with the headers that `huggingface_hub` makes its errors of."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}


class LocalHub:
    """The server; a context in which it runs."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.xorbs: dict[bytes, list[bytes]] = {}
        self.requests: list[tuple[str, int]] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()

    def __enter__(self) -> "LocalHub":
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def repository(self, name: str, kind: str = "model") -> Repository:
        return self.repositories[kind, name]

    def fault(self, kind: str, pattern: str, times: int = 1) -> None:
        self.faults.append(Fault(kind, pattern, times))

    def asked(self, pattern: str) -> list[tuple[str, int]]:
        """Requests with a match of `pattern`, each with the bytes of its body."""
        return [request for request in self.requests if re.search(pattern, request[0])]

    def take_fault(self, request: str) -> str | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault.kind
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes: the second would wait for 40 ms

    def log_message(self, *arguments: object) -> None:
        """Say nothing on stderr."""

    def do_GET(self) -> None:
        path, _, self.query = self.path.partition("?")
        self.path = unquote(path)
        request = f"{self.command} {self.path}"
        self.fault = self.hub.take_fault(request)
        length = int(self.headers.get("Content-Length", 0))
        self.body = self.rfile.read(length // 2 if self.fault == "cut" else length)
        if self.fault == "cut" and length:
            return self.hang_up()
        if self.fault == "damage":
            self.body = self.body[:-1] + bytes([self.body[-1] ^ 1])
        with self.hub.lock:
            self.hub.requests.append((" ".join([request, self.headers.get("Range", "")]).strip(), length))
            try:
                if (self.fault or "").isdigit():
                    raise HubError(int(self.fault), "something broke")
                answer = self.answer()
                if self.fault == "lost answer":
                    self.hang_up()
                elif self.fault == "page":
                    self.send(200, b"<html>", {"Content-Type": "text/html"})
                elif answer is not None:
                    self.send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})
            except HubError as error:
                self.send(error.status, json.dumps({"error": str(error)}).encode(), error.headers)

    do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if self.fault == "cut" else content)
        if self.fault == "cut":
            self.hang_up()

    def answer(self) -> object:
        """What to send as JSON; `None` if it is sent already."""
        for method, pattern, function in ROUTES:
            if (match := re.fullmatch(pattern, self.path)) and self.command in method.split():
                return function(self, **match.groupdict())
        raise HubError(404, f"the local Hub does not know {self.command} {self.path}")

    @property
    def json(self) -> dict:
        return json.loads(self.body)

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def may_write(self, name: str) -> None:
        if self.token not in (READ_TOKEN, WRITE_TOKEN):
            raise HubError(401, "Invalid credentials in Authorization header")
        if self.token != WRITE_TOKEN or not name.startswith("user/"):
            raise HubError(403, "you don't have the rights to write to this namespace")

    def find(self, kind: str | None, name: str, write: bool = False) -> Repository:
        repository = self.hub.repositories.get((kind or "model", name))
        if repository is None or (repository.private and self.token not in (READ_TOKEN, WRITE_TOKEN)):
            raise HubError(404 if self.token else 401, "Repository not found", "RepoNotFound")
        if write:
            self.may_write(name)
        return repository

    def create(self) -> dict:
        kind, name = self.json.get("type", "model"), f"{self.json['organization']}/{self.json['name']}"
        self.may_write(name)
        if (kind, name) in self.hub.repositories:
            raise HubError(409, "You already created this repo")
        made = self.hub.repositories[kind, name] = Repository(self.json.get("visibility") == "private")
        made.sdk = self.json.get("sdk")
        made.commit({".gitattributes": File(b"*.safetensors filter=lfs\n", False)}, "initial commit")
        return {"url": f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}"}

    def info(self, kind: str, name: str, revision: str = "main") -> dict:
        repository = self.find(kind, name)
        sha = repository.resolve(revision)
        siblings = [{"rfilename": path} for path in repository.revisions[sha]]
        about = {"id": name, "sha": sha, "private": repository.private, "siblings": siblings, "tags": []}
        return about | {"downloads": 0, "likes": 0, "lastModified": "2026-01-01T00:00:00.000Z"}

    def tree(self, kind: str, name: str, revision: str, under: str | None = None) -> list[dict]:
        repository = self.find(kind, name)
        prefix = f"{under.strip('/')}/" if under else ""
        found = {}
        for path, file in repository.revisions[repository.resolve(revision)].items():
            here, deeper, _ = path.removeprefix(prefix).partition("/")
            if path.startswith(prefix) and (not deeper or "recursive=true" in self.query.lower()):
                found[path] = file.entry(path)
            elif path.startswith(prefix):
                found[prefix + here] = {"type": "directory", "path": prefix + here, "oid": git_hash(here.encode())}
        if not found:
            raise HubError(404, f"{under} does not exist on {revision}", "EntryNotFound")
        return list(found.values())

    def preupload(self, kind: str, name: str, revision: str) -> dict:
        files = self.find(kind, name, write=True).files
        answers = []
        for asked in self.json["files"]:
            mode = "lfs" if asked["path"].endswith(LARGE) else "regular"
            known = {"oid": files[asked["path"]].oid} if asked["path"] in files else {}
            answers.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, **known})
        return {"files": answers}

    def large_batch(self, name: str, kind: str | None = None) -> dict:
        self.find((kind or "models/").removesuffix("s/"), name, write=True)
        answers = []
        for asked in self.json["objects"]:
            where = f"{self.hub.url}/large/{asked['oid']}"
            actions = {"upload": {"href": where}, "verify": {"href": f"{where}/verify"}}
            stored = asked["oid"] in self.hub.large_files
            answers.append(asked | ({} if stored else {"actions": actions}))
        return {"transfer": "basic", "objects": answers}

    def put_large(self, oid: str) -> dict:
        self.hub.large_files[oid] = self.body
        return {}

    def verify_large(self, oid: str) -> dict:
        if hashlib.sha256(self.hub.large_files[oid]).hexdigest() != oid:
            del self.hub.large_files[oid]
            raise HubError(400, "the sha256 of the uploaded object is another one")
        return {}

    def xet_token(self, kind: str, name: str, revision: str) -> dict:
        self.find(kind, name, write=True)
        return {"accessToken": "xet", "exp": int(time.time()) + 900, "casUrl": self.hub.url}

    def put_xorb(self, xorb: str) -> dict:
        """Chunks, each behind 8 bytes: its version, its length (3 bytes), its compression, its length again."""
        chunks, at = [], 0
        while at < len(self.body):
            length = int.from_bytes(self.body[at + 1 : at + 4], "little")
            chunks.append(self.body[at + 8 : at + 8 + length])
            at += 8 + length
        words = [bytes.fromhex(xorb[i : i + 16])[::-1] for i in range(0, 64, 16)]
        self.hub.xorbs[b"".join(words)] = chunks
        return {"was_inserted": True}

    def put_shard(self) -> dict:
        """Records of 48 bytes: for each file a head, its ranges of chunks, as many checks, and its sha256."""
        records = [self.body[at : at + 48] for at in range(48, len(self.body), 48)]
        while records[0][:32] != b"\xff" * 32:
            count = int.from_bytes(records[0][36:40], "little")
            content = b"".join(
                chunk
                for part in records[1 : 1 + count]
                for chunk in self.hub.xorbs[part[:32]][slice(*struct.unpack("<II", part[40:48]))]
            )
            sha256 = b"".join(records[1 + 2 * count][i : i + 8][::-1] for i in range(0, 32, 8)).hex()
            if hashlib.sha256(content).hexdigest() != sha256:
                raise HubError(400, "the sha256 of the uploaded object is another one")
            self.hub.large_files[sha256] = content
            records = records[2 + 2 * count :]
        return {"result": 1}

    def commit(self, kind: str, name: str, revision: str) -> dict:
        repository = self.find(kind, name, write=True)
        header, *lines = [json.loads(line) for line in self.body.splitlines()]
        if header["value"].get("parentCommit", repository.head) != repository.head:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.large_files:
                    raise HubError(400, f"large file {value['oid']} was never uploaded")
                files[value["path"]] = File(self.hub.large_files[value["oid"]], True)
            else:
                files[value["path"]] = File(base64.b64decode(value["content"]), False)
        sha = repository.commit(files, header["value"]["summary"])
        return {"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha}

    def tag(self, kind: str, name: str, revision: str) -> dict:
        repository = self.find(kind, name, write=True)
        if self.json["tag"] in repository.tags:
            raise HubError(409, "Tag reference exists already")
        repository.tags[self.json["tag"]] = repository.resolve(revision)
        return {}

    def settings(self, kind: str, name: str) -> dict:
        self.find(kind, name, write=True).private = self.json["visibility"] == "private"
        return {}

    def validate(self) -> dict:
        return {"errors": [], "warnings": []}

    def download(self, name: str, revision: str, path: str, kind: str | None = None) -> None:
        repository = self.find((kind or "models/").removesuffix("s/"), name)
        sha = repository.resolve(revision)
        file = repository.revisions[sha].get(path)
        if file is None:
            raise HubError(404, f"{path} is not in {sha}", "EntryNotFound")
        size = len(file.content)
        about = {"ETag": f'"{file.oid}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self.send(200, file.content, about)
        start, end = int(asked[1]), min(int(asked[2] or size - 1), size - 1)
        part = {"Content-Range": f"bytes {start}-{end}/{size}"}
        return self.send(206, file.content[start : end + 1], about | part)


_REPO = r"/api/(?P<kind>model|dataset|space)s/(?P<name>[^/]+/[^/]+)"
_PLAIN = r"/(?P<kind>datasets/|spaces/)?(?P<name>[^/]+/[^/]+)"
ROUTES: tuple[tuple[str, str, Callable], ...] = (
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate),
    ("GET", _REPO, _Handler.info),
    ("GET", _REPO + r"/revision/(?P<revision>.+)", _Handler.info),
    ("GET", _REPO + r"/tree/(?P<revision>[^/]+)(?P<under>/.*)?", _Handler.tree),
    ("POST", _REPO + r"/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", _REPO + r"/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("POST", _REPO + r"/tag/(?P<revision>[^/]+)", _Handler.tag),
    ("PUT", _REPO + r"/settings", _Handler.settings),
    ("POST", _PLAIN + r"\.git/info/lfs/objects/batch", _Handler.large_batch),
    ("GET", _REPO + r"/xet-write-token/(?P<revision>[^/]+)", _Handler.xet_token),
    ("POST", r"/v1/xorbs/default/(?P<xorb>\w+)", _Handler.put_xorb),
    ("POST", r"/v1/shards", _Handler.put_shard),
    ("PUT", r"/large/(?P<oid>\w+)", _Handler.put_large),
    ("POST", r"/large/(?P<oid>\w+)/verify", _Handler.verify_large),
    ("GET HEAD", _PLAIN + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.download),
)  # fmt: skip
