"""Carry a snapshot to a worker, and what was changed in its copy back, as thin packs of git.

Only objects that the other end lacks travel: for a second run of a project of 540 MB, 1.9 KB. No
bundle is used, because one of a shallow repository cannot be read elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, cast

from codex_tools.codex.json_object import Json
from codex_tools.places.frames import ProtocolError
from codex_tools.places.wire_turn import plain_path
from codex_tools.worktree.copies import Copy
from codex_tools.worktree.git_call import Git
from codex_tools.worktree.scan import LeftOut
from codex_tools.worktree.shadow import Shadow
from codex_tools.worktree.snapshot import Part, Snapshot, bounded, write_whole
from codex_tools.worktree.tree_changes import Changes, compare, scan_copy
from codex_tools.worktree.tree_error import GitFailed, TreeError

HAVE_LIMIT = 200
"""Most objects that a worker names as known; each is the newest of its kind."""

LEFT_OUT_LIMIT = 1000
"""Most paths that a worker may name as left out."""

PARTS_LIMIT = 1000
"""Most repositories in the trees that a worker sends."""

_STATE = re.compile(
    r"config|packed-refs|shallow|info/(exclude|attributes|sparse-checkout)|logs/HEAD"
    r"|(MERGE|CHERRY_PICK|REVERT|SQUASH|ORIG)_(HEAD|MSG|MODE)"
)
"""The files of a part that decide what `git status` says in its copy."""

_STATE_LIMIT = 1024 * 1024

_OBJECT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

_ID = re.compile(r"[0-9a-f-]{1,64}")


@dataclass(frozen=True, slots=True)
class Parcel:
    """A snapshot that is ready to travel."""

    snapshot: Snapshot
    """The snapshot as the worker gets it: perhaps without the files that must stay here."""
    description: bytes
    """What the worker must know of it, as JSON."""
    warnings: tuple[str, ...] = ()


def describe_project(shadow: Shadow) -> Json:
    """Return what a worker needs to find its shadow repository for the project."""
    return {
        "key": shadow.folder.name,
        "root": os.fspath(shadow.root),
        "object_format": shadow.object_format,
    }


def open_project(state_dir: Path, description: Json) -> Shadow:
    """Return the worker's shadow repository for a project of its server.

    Raises:
        ProtocolError: The description is none.
        TreeError: There is no git.
        OSError: The state folder cannot be written to.
    """
    values = [description.get(name) for name in ("root", "key", "object_format")]
    if not all(isinstance(each, str) for each in values):
        raise ProtocolError("a project is not described by texts")
    root, key, object_format = cast("list[str]", values)
    return Shadow.open_elsewhere(state_dir, Path(root), key, object_format)


def known_objects(shadow: Shadow) -> list[str]:
    """Return the newest objects that this shadow repository keeps, so that they need not travel."""
    listing = shadow.git().run(
        *("for-each-ref", f"--count={HAVE_LIMIT}", "--sort=-refname", "--format=%(objectname)"),
        "refs/snapshots/",
    )
    return list(dict.fromkeys(listing.decode().split()))


def make_parcel(shadow: Shadow, snapshot: Snapshot, *, carry: bool) -> Parcel:
    """Prepare *snapshot* for a worker.

    Args:
        shadow: The shadow repository that holds it.
        snapshot: The snapshot.
        carry: True if ignored files that `.worktreeinclude` names may travel.

    Raises:
        TreeError: git failed.
    """
    warnings: tuple[str, ...] = ()
    if snapshot.carried and not carry:
        names = ", ".join(snapshot.carried[:5])
        warnings = (
            f"{len(snapshot.carried)} ignored files that .worktreeinclude names stay on this"
            f" machine, because the place has no `carry = true`: {names}.",
        )
        snapshot = _without_carried(shadow, snapshot)
    parts: list[Json] = []
    for number, part in enumerate(snapshot.parts):
        folder = shadow.folder / "snapshots" / snapshot.id / str(number)
        files = {
            name: base64.b64encode(path.read_bytes()).decode()
            for path in sorted(folder.rglob("*"))
            if _STATE.fullmatch(name := path.relative_to(folder).as_posix())
            and path.is_file()
            and path.stat().st_size <= _STATE_LIMIT
        }
        parts.append({"files": files} if part.has_git else {})
    description = json.dumps({"snapshot": snapshot.dump(), "parts": parts}).encode()
    return Parcel(snapshot, description, warnings)


def pack_snapshot(
    shadow: Shadow, snapshot: Snapshot, known: Iterable[str], into: IO[bytes], limit: int
) -> bool:
    """Write a pack with what a worker lacks of *snapshot* to a file.

    Args:
        shadow: The shadow repository.
        snapshot: The snapshot.
        known: Objects that the worker says it has.
        into: The file.
        limit: Most bytes of the pack.

    Returns:
        False if the history could not be packed, as in a partial clone, and was left out.

    Raises:
        TreeError: git failed, or the pack is larger than *limit*.
    """
    trees = [each for part in snapshot.parts for each in (part.tree, part.staged) if each]
    heads = [part.head for part in snapshot.parts if part.head]
    git = shadow.git(objects=snapshot.objects)
    shallow = shadow.folder / "snapshots" / snapshot.id / "0" / "shallow"
    env = {"GIT_SHALLOW_FILE": os.fspath(shallow)} if shallow.is_file() else {}
    lacking = _existing(git, known)
    if heads:
        try:
            _pack(git, [*heads, *trees], lacking, into, limit, env)
            return True
        except GitFailed as error:
            if "printed more than" in str(error):
                raise
            into.seek(0)
            into.truncate()
    _pack(git, trees, lacking, into, limit, env)
    return not heads


def unpack(git: Git, pack: IO[bytes], limit: int, *, strict: bool) -> None:
    """Read a pack into a shadow repository.

    Args:
        git: git on that repository, which sees the objects that the pack builds on.
        pack: The file, from its position on.
        limit: Most bytes of the pack.
        strict: True to refuse objects that no honest git writes, such as a path with `..`.

    Raises:
        TreeError: The pack is damaged or refused.
    """
    options = ("--strict",) if strict else ()
    git.run(
        "index-pack", "--stdin", "--fix-thin", f"--max-input-size={limit}", *options, stdin=pack
    )


def receive_snapshot(shadow: Shadow, description: bytes, *, has_history: bool) -> Snapshot:
    """Store the description of a snapshot whose objects have arrived; return it for `lay_out`.

    Raises:
        ProtocolError: The description is none.
        TreeError: Its objects are not there.
        OSError: The state folder cannot be written to.
    """
    try:
        read = cast(Json, json.loads(description))
        sent = Snapshot.load(str(read["snapshot"]))
        files = [
            cast("dict[str, str]", each.get("files", {}))
            for each in cast("list[Json]", read["parts"])
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProtocolError(f"a snapshot cannot be read: {error}") from error
    if not sent.parts or len(files) != len(sent.parts) or sent.parts[0].path:
        raise ProtocolError("a snapshot has no parts, or other ones than described")
    name = f"{int(time.time()):x}-{secrets.token_hex(6)}"
    folder = shadow.folder / "snapshots" / name
    folder.mkdir(parents=True, mode=0o700)
    try:
        parts: list[Part] = []
        for number, (part, each) in enumerate(zip(sent.parts, files, strict=True)):
            plain_path(part.path)
            head = part.head if has_history else None
            # Without its commit, a detached HEAD would name nothing.
            branch = part.branch or (None if head else "refs/heads/main")
            parts.append(replace(part, objects="", head=head, branch=branch))
            if part.has_git:
                _write_state(folder / str(number), each)
        made = replace(sent, id=name, root=shadow.root, parts=tuple(parts))
        objects = [
            each for part in made.parts for each in (part.tree, part.staged, part.head) if each
        ]
        if not all(map(_OBJECT.fullmatch, objects)):
            raise ProtocolError("a snapshot names something that is no object")
        shadow.keep(name, objects)
        for number, part in enumerate(made.parts):
            if part.has_git:
                _drop_unknown_refs(shadow, folder / str(number) / "packed-refs")
        write_whole(folder / "snapshot.json", made.dump())
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return made


def collect(
    shadow: Shadow, snapshot: Snapshot, copy: Copy, into: IO[bytes], limit: int
) -> tuple[dict[str, str], list[LeftOut]]:
    """Find the trees of a copy, and write a pack with what the server lacks of them to a file.

    Raises:
        TreeError: git failed, or the pack is larger than *limit*.
        OSError: The state folder cannot be written to.
    """
    left_out: list[LeftOut] = []
    trees = scan_copy(shadow, snapshot, copy, left_out)
    shadow.keep(f"{snapshot.id}/{int(time.time()):x}-{secrets.token_hex(6)}", trees.values())
    known = [part.tree for part in snapshot.parts]
    new = [each for each in trees.values() if each not in known]
    _pack(shadow.git(), new, known, into, limit, {})
    return trees, [*bounded(left_out)]


def read_trees(body: bytes) -> tuple[dict[str, str], list[LeftOut]]:
    """Return the trees that a worker sends, by the path of their part, and what it left out.

    Raises:
        ProtocolError: They are none, or a path leads out of the project.
    """
    try:
        read = cast(Json, json.loads(body))
        trees = cast("dict[str, str]", read["trees"])
        left_out = [LeftOut(*each) for each in cast("list[list[str]]", read["left_out"])]
        paths = {path: str(tree) for path, tree in trees.items()}
        texts: list[object] = [text for each in left_out for text in (each.path, each.reason)]
        is_right = (
            "" in paths
            and len(paths) <= PARTS_LIMIT
            and len(left_out) <= LEFT_OUT_LIMIT
            and all(map(_OBJECT.fullmatch, paths.values()))
            and all(isinstance(text, str) for text in texts)
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProtocolError(f"trees cannot be read: {error}") from error
    if not is_right:
        raise ProtocolError("trees are not as they must be")
    for path in paths:
        plain_path(path)
        if any(part.lower() == ".git" for part in path.split("/")):
            raise ProtocolError("a part of a tree is a git folder")
    return paths, [LeftOut(each.path[:4096], each.reason[:200]) for each in left_out]


def dump_trees(trees: dict[str, str], left_out: Sequence[LeftOut]) -> bytes:
    """Return what `read_trees` reads."""
    named = [[each.path, each.reason] for each in left_out]
    return json.dumps({"trees": trees, "left_out": named}).encode()


def changes_from(
    shadow: Shadow, before: Snapshot, trees: dict[str, str], left_out: Sequence[LeftOut]
) -> Changes:
    """Compare a snapshot with trees that have arrived from a worker.

    Raises:
        TreeError: An object of them is missing.
    """
    git = shadow.git(objects=before.objects)
    wanted = [*trees.values()]
    listing = "".join(f"{each}\n" for each in wanted).encode()
    kinds = git.run("cat-file", "--batch-check=%(objecttype)", stdin=listing).split()
    if kinds != [b"tree"] * len(wanted):
        raise TreeError("a tree that the place named has not arrived")
    name = f"{int(time.time()):x}-{secrets.token_hex(6)}"
    shadow.keep(f"{before.id}/{name}", trees.values())
    return compare(shadow, before, trees, left_out, name)


def is_copy_id(name: str) -> bool:
    """Return True if *name* can be that of a copy."""
    return _ID.fullmatch(name) is not None


def _pack(
    git: Git,
    wanted: Sequence[str],
    known: Iterable[str],
    into: IO[bytes],
    limit: int,
    env: dict[str, str],
) -> None:
    listing = "".join([*(f"{each}\n" for each in wanted), *(f"^{each}\n" for each in known)])
    git.run(
        *("pack-objects", "--revs", "--thin", "--stdout", "--delta-base-offset", "-q"),
        stdin=listing.encode(),
        into=into,
        limit=limit,
        env=env,
    )
    into.flush()
    into.seek(0)


def _existing(git: Git, objects: Iterable[str]) -> list[str]:
    """Return those of *objects* that are here: others would make git fail."""
    asked = [each for each in dict.fromkeys(objects) if _OBJECT.fullmatch(each)][:HAVE_LIMIT]
    if not asked:
        return []
    listing = "".join(f"{each}\n" for each in asked).encode()
    kinds = git.run("cat-file", "--batch-check=%(objecttype)", stdin=listing).split(b"\n")
    return [each for each, kind in zip(asked, kinds, strict=False) if kind in (b"commit", b"tree")]


def _without_carried(shadow: Shadow, snapshot: Snapshot) -> Snapshot:
    """Return *snapshot* without the ignored files that it holds."""
    index = shadow.index(f"sent-{secrets.token_hex(6)}")
    git = shadow.git(index=index)
    first = snapshot.parts[0]
    try:
        git.run("read-tree", first.tree)
        paths = "".join(f"{each}\0" for each in snapshot.carried)
        git.run("update-index", "--force-remove", "-z", "--stdin", stdin=os.fsencode(paths))
        tree = git.run("write-tree", "--missing-ok").decode().strip()
    finally:
        index.unlink(missing_ok=True)
    left_out = [LeftOut(each, "not carried to another place") for each in snapshot.carried]
    # It is kept as a snapshot of its own: a later run in the same copy is compared with it. With
    # the other one, the files that stayed here would look as if that run had deleted them.
    name = f"{int(time.time()):x}-{secrets.token_hex(6)}"
    made = replace(
        snapshot,
        id=name,
        parts=(replace(first, tree=tree), *snapshot.parts[1:]),
        left_out=bounded([*snapshot.left_out, *left_out]),
        carried=(),
    )
    objects = [each for part in made.parts for each in (part.tree, part.staged, part.head) if each]
    shadow.keep(name, [each for each in objects if each in (tree, first.staged)])
    folder = shadow.folder / "snapshots"
    shutil.copytree(folder / snapshot.id, folder / name, symlinks=True)
    write_whole(folder / name / "snapshot.json", made.dump())
    return made


def _write_state(folder: Path, files: dict[str, str]) -> None:
    for inner in ("info", "logs"):
        (folder / inner).mkdir(parents=True)
    for name, content in files.items():
        if not _STATE.fullmatch(name):
            raise ProtocolError(f"a snapshot has a file {name[:40]!r}")
        try:
            (folder / name).write_bytes(base64.b64decode(content, validate=True))
        except (binascii.Error, TypeError) as error:
            raise ProtocolError(f"a snapshot has a damaged file {name!r}") from error


def _drop_unknown_refs(shadow: Shadow, file: Path) -> None:
    """Remove the refs from a list whose objects did not travel: those outside HEAD's history."""
    if not file.exists():
        return
    lines = file.read_bytes().split(b"\n")
    named = [line for line in lines if re.match(rb"[0-9a-f]{40,64} refs/", line)]
    listing = b"".join(line.partition(b" ")[0] + b"\n" for line in named)
    kinds = shadow.git().run("cat-file", "--batch-check=%(objecttype)", stdin=listing).split(b"\n")
    kept = [line for line, kind in zip(named, kinds, strict=False) if kind == b"commit"]
    file.write_bytes(b"# pack-refs with: sorted \n" + b"".join(line + b"\n" for line in kept))
