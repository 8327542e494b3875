"""Take a snapshot of a work tree as it is on disk, without writing to the person's repository.

A snapshot holds staged, unstaged and untracked files with their bytes on disk. Each repository
inside the tree, submodule or not, is a part of its own. Ignored files are left out, but for those
that `.worktreeinclude` at the root names. All that is left out is listed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from codex_tools.worktree.git_call import Git
from codex_tools.worktree.home_index import HomeIndex, copy_index, read_index
from codex_tools.worktree.repository import Repository, read_file
from codex_tools.worktree.scan import Folder, LeftOut, scan
from codex_tools.worktree.shadow import Shadow
from codex_tools.worktree.tree_error import TreeError

FORMAT = 1
"""The version of the files that describe a snapshot."""

LEFT_OUT_LIMIT = 500
"""Most paths that are named as left out; one more entry has the number of the others."""

PARTS_LIMIT = 200
"""Most repositories in one tree; further ones are left out."""

_STATE = (
    *("MERGE_HEAD", "MERGE_MSG", "MERGE_MODE", "CHERRY_PICK_HEAD", "REVERT_HEAD", "SQUASH_MSG"),
    *("ORIG_HEAD", "info/sparse-checkout", "logs/HEAD"),
)
"""Files of a work tree's own git folder that decide what `git status` says."""

_STATE_LIMIT = 4 * 1024 * 1024

_CONVERTING = re.compile(rb"filter|ident|encoding")


@dataclass(frozen=True, slots=True)
class Part:
    """One repository of a snapshot, or a folder without one."""

    path: str
    """The folder relative to the root; "" for the root."""
    tree: str
    """The tree with the bytes on disk, in the shadow repository."""
    has_git: bool
    objects: str = ""
    """The folder of the person's objects."""
    head: str | None = None
    branch: str | None = None
    staged: str | None = None
    """The tree of the person's index, without unmerged files."""
    unmerged: tuple[str, ...] = ()
    intended: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    """Folders without files."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A work tree as it was at one time."""

    id: str
    root: Path
    taken_at: float
    """Seconds since the epoch."""
    parts: tuple[Part, ...]
    """The root first, then each nested repository, the outer ones before the inner ones."""
    left_out: tuple[LeftOut, ...] = ()
    carried: tuple[str, ...] = ()
    """Ignored files that the snapshot holds because `.worktreeinclude` names them."""

    @property
    def tree(self) -> str:
        """The id of the root's tree."""
        return self.parts[0].tree

    @property
    def head(self) -> str | None:
        """The commit of HEAD; None without one."""
        return self.parts[0].head

    @property
    def branch(self) -> str | None:
        """The full name of the branch; None if HEAD is detached or there is no repository."""
        return self.parts[0].branch

    @property
    def objects(self) -> tuple[str, ...]:
        """The folders of objects that reading the snapshot needs."""
        return tuple(dict.fromkeys(part.objects for part in self.parts if part.objects))

    def dump(self) -> str:
        """Return the snapshot as JSON."""
        return json.dumps({"format": FORMAT, **asdict(self), "root": os.fspath(self.root)})

    @classmethod
    def load(cls, text: str) -> Snapshot:
        """Return the snapshot that `dump` wrote.

        Raises:
            TreeError: The text is none, or a later build wrote it.
        """
        try:
            read = cast(dict[str, Any], json.loads(text))
            if read["format"] != FORMAT:
                raise TreeError(f"the snapshot has format {read['format']}, not {FORMAT}")
            parts = [Part(**_with_tuples(each)) for each in read["parts"]]
            return cls(
                id=str(read["id"]),
                root=Path(read["root"]),
                taken_at=float(read["taken_at"]),
                parts=tuple(parts),
                left_out=tuple(LeftOut(**each) for each in read["left_out"]),
                carried=tuple(read["carried"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise TreeError(f"the snapshot cannot be read: {error}") from error


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        key: tuple(cast(list[str], value)) if isinstance(value, list) else value
        for key, value in fields.items()
    }


@dataclass(slots=True)
class _Taking:
    """A snapshot while it is taken."""

    shadow: Shadow
    folder: Path
    lock_fd: int
    parts: list[Part] = field(default_factory=list[Part])
    left_out: list[LeftOut] = field(default_factory=list[LeftOut])
    carried: list[str] = field(default_factory=list[str])


def take_snapshot(shadow: Shadow) -> Snapshot:
    """Take a snapshot of the project, and keep it until it is forgotten.

    Raises:
        TreeError: git failed, or the tree is too large.
        CopyBusy: Another process takes a snapshot of the project for too long.
        OSError: The state folder cannot be written to.
    """
    name = f"{int(time.time()):x}-{secrets.token_hex(6)}"
    folder = shadow.folder / "snapshots" / name
    with shadow.locked() as lock_fd:
        folder.mkdir(parents=True, mode=0o700)
        try:
            taking = _Taking(shadow, folder, lock_fd)
            _take_part(taking, "")
            made = Snapshot(
                *(name, shadow.root, time.time(), tuple(taking.parts)),
                left_out=bounded(taking.left_out),
                carried=tuple(taking.carried),
            )
            trees = [tree for part in made.parts for tree in (part.tree, part.staged) if tree]
            shadow.keep(name, trees)
            write_whole(folder / "snapshot.json", made.dump())
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return made


def load_snapshot(shadow: Shadow, name: str) -> Snapshot:
    """Return the snapshot *name*.

    Raises:
        TreeError: There is none.
    """
    if re.fullmatch(r"[0-9a-f-]{1,64}", name) is None:
        raise TreeError("there is no such snapshot")
    content = read_file(str(shadow.folder / "snapshots" / name / "snapshot.json"), 1 << 28)
    if content is None:
        raise TreeError(f"the snapshot {name} is no longer kept")
    return Snapshot.load(content.decode())


def forget_snapshot(shadow: Shadow, name: str) -> None:
    """Stop keeping a snapshot."""
    if re.fullmatch(r"[0-9a-f-]{1,64}", name) is None:
        raise TreeError("there is no such snapshot")
    shutil.rmtree(shadow.folder / "snapshots" / name, ignore_errors=True)
    shadow.forget(name)


def key_of(path: str) -> str:
    """Return the name of the index and of the excludes file of the part *path*."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16] if path else "root"


def bounded(left_out: Sequence[LeftOut]) -> tuple[LeftOut, ...]:
    """Return the first LEFT_OUT_LIMIT paths, and how many there are besides."""
    if len(left_out) <= LEFT_OUT_LIMIT:
        return tuple(left_out)
    more = LeftOut("...", f"{len(left_out) - LEFT_OUT_LIMIT:,} more paths")
    return (*left_out[:LEFT_OUT_LIMIT], more)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that no reader sees a part of it."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    new.write_text(text)
    new.replace(path)


def _take_part(taking: _Taking, path: str) -> None:
    """Add the part *path* and the parts inside it."""
    shadow = taking.shadow
    folder = os.path.join(shadow.root, path) if path else os.fspath(shadow.root)  # noqa: PTH118
    repository = shadow.repository(folder)
    if repository is None and os.path.lexists(Path(folder, ".git")):
        reason = "no repository, or one with another object format"
        taking.left_out.append(LeftOut(f"{path}/.git".lstrip("/"), reason))
    key = key_of(path)
    known = shadow.index(f"{key}.home")
    excludes = shadow.git_dir / "excludes" / key
    excludes.write_bytes(repository.excludes if repository is not None else b"")
    part = Part(path, "", repository is not None)
    home = HomeIndex()
    if repository is not None:
        home, staged = _read_home(taking, repository, known, shadow.index(key))
        part = replace(
            part,
            objects=repository.objects,
            head=repository.head,
            branch=repository.branch,
            staged=staged,
            unmerged=tuple(home.unmerged),
            intended=tuple(home.intended),
            skipped=tuple(home.skipped),
            assumed=tuple(home.assumed),
        )
        _write_state(taking.folder / str(len(taking.parts)), repository, shadow.program)
    else:
        known.unlink(missing_ok=True)
    include = _copy_include(shadow, folder) if not path else None
    at = Folder(
        *(folder, shadow.index(key), excludes, known, home.files.keys(), home.submodules, include)
    )
    found = scan(shadow, at, taking.lock_fd)
    prefix = f"{path}/" if path else ""
    taking.left_out += [replace(each, path=prefix + each.path) for each in found.left_out]
    taking.carried += found.carried
    inner = [
        each
        for each in map(os.fsdecode, found.repositories)
        if os.path.lexists(Path(folder, each, ".git")) or any(Path(folder, each).iterdir())
    ]
    empty = {os.fsdecode(each) for each in found.folders + found.repositories} - {*inner}
    part = replace(part, tree=found.tree, folders=tuple(sorted(empty)))
    taking.parts.append(part)
    for each in inner:
        if len(taking.parts) >= PARTS_LIMIT:
            taking.left_out.append(LeftOut(f"{prefix}{each}/", "too many repositories"))
        else:
            _take_part(taking, prefix + each)


def _read_home(
    taking: _Taking, repository: Repository, known: Path, own: Path
) -> tuple[HomeIndex, str]:
    """Return the person's index and the tree that it describes."""
    shadow = taking.shadow
    objects = (repository.objects,)
    if not copy_index(shadow, repository, known):
        return HomeIndex(), shadow.empty_tree()
    is_new = not own.exists()
    home = read_index(shadow, known, repository.root, objects, sizes=is_new)
    if is_new:
        _start_index(shadow, repository, home, known, own)
    git = shadow.git(repository.root, known, lock_fd=taking.lock_fd)
    if home.unmerged:
        paths = dict.fromkeys(line.partition("\t")[2] for line in home.unmerged)
        zeros = "0" * (64 if shadow.object_format == "sha256" else 40)
        lines = "".join(f"0 {zeros}\t{path}\0" for path in paths)
        git.run("update-index", "-z", "--index-info", stdin=os.fsencode(lines))
    return home, git.run("write-tree", "--missing-ok").decode().strip()


def _start_index(
    shadow: Shadow, repository: Repository, home: HomeIndex, known: Path, own: Path
) -> None:
    """Make our own index from the person's, with those entries whose blob is the bytes on disk.

    So the first snapshot need not read each file. A file that was converted has another size, but
    a filter may also keep the size: files with one are read.
    """
    blobs = {path: entry[7:] for path, entry in home.files.items()}
    wanted = list(dict.fromkeys(blobs.values()))
    listing = b"\n".join(wanted) + b"\n" if wanted else b""
    git = shadow.git(objects=(repository.objects,))
    answer = git.run("cat-file", "--batch-check=%(objectsize)", "--buffer", stdin=listing)
    sizes = dict(zip(wanted, answer.split(b"\n"), strict=False))
    dropped = {path for path, blob in blobs.items() if sizes[blob] != b"%d" % home.sizes[path]}
    for named in (home.intended, home.skipped, home.assumed):
        dropped |= set(map(os.fsencode, named))
    dropped |= {os.fsencode(line.partition("\t")[2]) for line in home.unmerged}
    dropped |= home.submodules | _converted(shadow, repository, home)
    new = own.with_name(f"{own.name}.new")
    shutil.copy2(known, new)
    if dropped:
        zeros = b"0" * (64 if shadow.object_format == "sha256" else 40)
        lines = b"".join(b"0 %b\t%b\0" % (zeros, path) for path in sorted(dropped))
        git = shadow.git(repository.root, new, (repository.objects,))
        git.run("update-index", "-z", "--index-info", stdin=lines)
    new.rename(own)


def _converted(shadow: Shadow, repository: Repository, home: HomeIndex) -> set[bytes]:
    """Return the tracked files for which an attribute names a conversion, now or in the index."""
    git = repository.git(shadow.program, own_config=True)
    named = git.run("config", "--type=path", "--get", "core.attributesFile", allowed=(0, 1, 128))
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111
    places = [
        os.fsdecode(named).rstrip("\n") or os.path.join(config, "git", "attributes"),  # noqa: PTH118
        os.path.join(repository.common_dir, "info", "attributes"),  # noqa: PTH118
    ]
    for path in home.files:
        if path.endswith(b".gitattributes"):
            places.append(os.path.join(repository.root, os.fsdecode(path)))  # noqa: PTH118
    if not any(_CONVERTING.search(read_file(each, _STATE_LIMIT) or b"") for each in places):
        return set()
    paths = b"\0".join(home.files) + b"\0"
    # No index: git would set the mtime of a split one. So it reads the files .gitattributes.
    env = {**git.env, "GIT_WORK_TREE": repository.root}
    env["GIT_INDEX_FILE"] = os.fspath(shadow.git_dir / "no-index")
    answer = Git(shadow.program, env, repository.root).run(
        *("check-attr", "-z", "--stdin", "filter", "ident", "working-tree-encoding"), stdin=paths
    )
    fields = answer.split(b"\0")[:-1]
    off = (b"unspecified", b"unset")
    return {path for path, value in zip(fields[::3], fields[2::3], strict=True) if value not in off}


def _copy_include(shadow: Shadow, folder: str) -> Path | None:
    """Return a copy of `.worktreeinclude`; None if there is none."""
    content = read_file(str(Path(folder, ".worktreeinclude")), _STATE_LIMIT, follow=False)
    if not content:
        return None
    copied = shadow.git_dir / "excludes" / "include"
    copied.write_bytes(content)
    return copied


def _write_state(folder: Path, repository: Repository, program: str) -> None:
    """Write what a copy's own git folder gets: settings, refs, and the state of a merge."""
    for each in ("info", "logs"):
        (folder / each).mkdir(parents=True)
    (folder / "config").write_text(_config(repository))
    refs = repository.refs(program)
    (folder / "packed-refs").write_bytes(b"# pack-refs with: sorted \n" + refs)
    (folder / "info" / "exclude").write_bytes(repository.excludes)
    shared = ("shallow", "info/attributes")
    for names, place in ((_STATE, repository.git_dir), (shared, repository.common_dir)):
        for name in names:
            content = read_file(str(Path(place, name)), _STATE_LIMIT)
            if content is not None:
                (folder / name).write_bytes(content)


def _config(repository: Repository) -> str:
    """Return the configuration of a copy's own repository; it names no program."""
    has_extension = repository.object_format == "sha256" or repository.is_partial
    lines = [f"[core]\n\trepositoryformatversion = {int(has_extension)}\n\tbare = false\n"]
    lines.append("\tlogallrefupdates = true\n")
    if repository.object_format == "sha256":
        lines.append("[extensions]\n\tobjectformat = sha256\n")
    if repository.is_partial:
        lines.append(
            '[extensions]\n\tpartialclone = origin\n[remote "origin"]\n\tpromisor = true\n'
        )
    for key, value in repository.settings:
        section, _, rest = key.partition(".")
        middle, _, name = rest.rpartition(".")
        if "\n" in key or "\0" in value:
            continue
        header = f'{section} "{_escaped(middle)}"' if middle else section
        quoted = _escaped(value).replace("\n", "\\n")
        lines.append(f'[{header}]\n\t{name} = "{quoted}"\n')
    return "".join(lines)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
