"""The stand-in Hub's part for uploads: new repositories, large files by LFS, and commits."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMESPACE = re.compile(r"(?P<owner>[^/]+)/(?P<name>[^/]+)")
UPLOAD = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<what>preupload|commit)/main")
XET_TOKEN = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/xet-write-token/main")
BATCH = re.compile(r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
STORED = re.compile(r"/(?P<what>lfs|lfs-part|lfs-end|lfs-verify)/(?P<oid>[0-9a-f]{64})(?:/(?P<part>\d+))?")
Json = dict[str, Any]


@dataclass
class Uploads:
    """What a stand-in Hub stores of uploads, and how it takes them.

    Attributes:
        role: of the token: read, write, fineGrained.
        permissions: of a fine-grained token, on the user's own repositories.
        organisations: of the user, by name, with the user's role in each.
        objects: the large files that are stored, by their SHA-256.
        part_size: bytes of a part; larger files are uploaded in several. 0: in one.
        parts: stored parts of files, by SHA-256 and number.
        received: bytes of large files that arrived, of complete and of broken requests.
        commits: the summary of each commit, with the names of added and of deleted files.
        xet: a directory that stands for Xet's storage; without one, large files are uploaded by LFS.
    """

    role: str = "write"
    permissions: tuple[str, ...] = ()
    organisations: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    part_size: int = 0
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    received: int = 0
    commits: list[tuple[str, list[str], list[str]]] = field(default_factory=list)
    xet: Path | None = None

    def account(self, user: str) -> Json:
        """Return the answer of `whoami`."""
        token: Json = {"displayName": "of a test", "role": self.role}
        if self.role == "fineGrained":
            scope = {"entity": {"type": "user", "name": user}, "permissions": list(self.permissions)}
            token["fineGrained"] = {"global": [], "scoped": [scope]}
        organisations = [{"name": name, "roleInOrg": role} for name, role in self.organisations.items()]
        return {"type": "user", "name": user, "orgs": organisations, "auth": {"accessToken": token}}

    def may_write(self, user: str, owner: str) -> bool:
        if self.role == "read" or (self.role == "fineGrained" and "repo.write" not in self.permissions):
            return False
        return owner == user or self.organisations.get(owner) in ("admin", "write", "contributor")

    def modes(self, repository: Any, asked: Json) -> Json:
        """Return which files are to be stored as LFS files, and the hash of those that the repository has."""
        return {
            "files": [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["size"] >= repository.lfs else "regular",
                    "shouldIgnore": False,
                    "oid": repository.etag(one["path"]) if one["path"] in repository.files else None,
                }
                for one in asked["files"]
            ]
        }

    def batch(self, url: str, asked: Json) -> Json:
        """Return where each large file is to be sent; nowhere if it is stored already."""
        return {"transfer": "basic", "objects": [self._object(url, **one) for one in asked["objects"]]}

    def _object(self, url: str, oid: str, size: int) -> Json:
        found: Json = {"oid": oid, "size": size}
        if oid in self.objects:
            return found
        signature = "signature=not-to-be-seen"
        upload: Json = {"href": f"{url}/lfs/{oid}?{signature}"}
        if 0 < self.part_size < size:
            numbers = range(1, -(-size // self.part_size) + 1)
            header = {f"{number:05}": f"{url}/lfs-part/{oid}/{number}?{signature}" for number in numbers}
            upload = {"href": f"{url}/lfs-end/{oid}", "header": {"chunk_size": str(self.part_size), **header}}
        return {**found, "actions": {"upload": upload, "verify": {"href": f"{url}/lfs-verify/{oid}"}}}

    def store(self, oid: str, part: int, data: bytes) -> None:
        if part:
            self.parts.setdefault(oid, {})[part] = data
        else:
            self._store_whole(oid, data)

    def complete(self, oid: str, asked: Json) -> None:
        """Join the parts of a file, in the order that the client lists them."""
        self._store_whole(oid, b"".join(self.parts[oid][one["partNumber"]] for one in asked["parts"]))

    def _store_whole(self, oid: str, data: bytes) -> None:
        assert hashlib.sha256(data).hexdigest() == oid, "the client sent other bytes than it announced"
        self.objects[oid] = data

    def commit(self, repository: Any, lines: bytes) -> None:
        """Add and delete files, all of them or none."""
        operations = [json.loads(line) for line in lines.splitlines()]
        added: dict[str, bytes] = {}
        deleted: list[str] = []
        summary = ""
        for operation in operations:
            kind, value = operation["key"], operation["value"]
            if kind == "header":
                summary = value["summary"]
            elif kind == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                stored = self.objects.get(value["oid"], b"")
                assert self.xet is not None or len(stored) == value["size"], "a commit of what was not uploaded"
                added[value["path"]] = stored
            elif kind == "deletedFile":
                deleted.append(value["path"])
        repository.files.update(added)
        for name in deleted:
            del repository.files[name]
        self.commits.append((summary, sorted(added), sorted(deleted)))

    def xet_token(self) -> Json:
        return {"casUrl": f"local://{self.xet}", "accessToken": "of-xet", "exp": int(time.time()) + 3600}
