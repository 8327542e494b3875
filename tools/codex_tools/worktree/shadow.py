"""Keep a repository of our own for each project: the objects and indexes of its snapshots.

It holds the bytes on disk, because its attributes switch off every conversion. It borrows the
objects of the person's repository, but only while git reads: git sets the mtime of a borrowed
object or pack when it is asked to write the same object again (seen with git 2.39.5). So commands
that write do not see them.

    STATE/trees/KEY/            one project
        root                    its path
        lock                    locked while its indexes are used
        shadow.git/             objects, refs/snapshots/ID/N, indexes/, excludes/
        snapshots/ID/           one snapshot
        copies/ID/NAME/         one copy, with its lock and its description
        journals/ID/            one application
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from codex_tools.codex.file_lock import lock, open_lock
from codex_tools.codex.private_folder import claim_folder
from codex_tools.worktree.git_call import Git, clean_env, find_git
from codex_tools.worktree.repository import Repository, read_repository
from codex_tools.worktree.tree_error import CopyBusy, GitFailed, TreeError

PACKS_LIMIT = 20
"""Number of packs of a shadow repository above which they become one: each run elsewhere adds one.
"""

LOCK_WITHIN_S = 120.0
"""Seconds to wait for another process that takes a snapshot of the same project."""

BLOB_LIMIT = 64 * 1024 * 1024
"""Bytes of the largest file that is merged."""

_KEY = re.compile(r"[0-9a-f]{24}")

_ATTRIBUTES = "* -text -eol -crlf -filter -ident -working-tree-encoding !diff !merge !whitespace\n"

_CONFIG = """\
[core]
\trepositoryformatversion = {version}
\tbare = false
\tautocrlf = false
\tsafecrlf = false
\tfilemode = true
\tsymlinks = true
\tignorecase = {ignore_case}
\ttrustctime = true
\tcheckstat = default
\tsplitindex = false
\tsparsecheckout = false
\tlooseCompression = 1
\tprotectNTFS = {protect}
\tprotectHFS = {protect}
\tlogallrefupdates = false
[index]
\tversion = 2
\tsparse = false
[feature]
\tmanyfiles = false
[diff]
\tignoresubmodules = all
[gc]
\tauto = 0
[extensions]
\tobjectformat = {object_format}
"""


@dataclass(frozen=True, slots=True)
class Shadow:
    """The repository of our own that belongs to one project."""

    folder: Path
    root: Path
    program: str
    """The path of git."""
    object_format: str

    @classmethod
    def open(cls, state_dir: Path, root: Path) -> Shadow:
        """Return the shadow repository of the project *root*, which is created if it is missing.

        Args:
            state_dir: The folder of this server's files.
            root: The project's folder: the top of its work tree, if it has a repository.

        Raises:
            TreeError: There is no git, *root* is no folder, or its repository cannot be read.
            OSError: The state folder cannot be written to.
        """
        real = os.path.realpath(root)
        if not os.path.isdir(real):  # noqa: PTH112
            raise TreeError(f"{root} is no folder")
        program = find_git(Path(real))
        repository = read_repository(program, real)
        object_format = "sha1" if repository is None else repository.object_format
        key = hashlib.sha256(f"{object_format}\0".encode() + os.fsencode(real)).hexdigest()[:24]
        return cls._open(Path(state_dir, "trees", key), Path(real), program, object_format)

    @classmethod
    def open_elsewhere(cls, state_dir: Path, root: Path, key: str, object_format: str) -> Shadow:
        """Return the shadow repository for a project of another machine.

        Args:
            state_dir: The folder of this worker's files.
            root: The project's folder on that machine; here it only gives copies their name.
            key: The name of the shadow repository there.
            object_format: That of the project's repository.

        Raises:
            TreeError: There is no git, or a value is not as that machine's own are.
            OSError: The state folder cannot be written to.
        """
        is_right = _KEY.fullmatch(key) and object_format in ("sha1", "sha256")
        if not is_right or not root.is_absolute() or root.name in ("", ".", "..", ".git"):
            raise TreeError("the description of the project cannot be right")
        return cls._open(Path(state_dir, "trees", key), root, find_git(), object_format)

    @classmethod
    def _open(cls, folder: Path, root: Path, program: str, object_format: str) -> Shadow:
        state_dir = folder.parent.parent
        for each in (state_dir, folder.parent, folder):
            claim_folder(each, follow=each == state_dir)
        made = cls(folder, root, program, object_format)
        if not made.git_dir.is_dir():
            made._create()
        os.utime(folder)
        return made

    @property
    def git_dir(self) -> Path:
        """The folder of the repository itself."""
        return self.folder / "shadow.git"

    def _create(self) -> None:
        new = self.folder / f"new-{secrets.token_hex(8)}"
        for name in ("objects/info", "objects/pack", "refs", "info", "indexes", "excludes"):
            (new / name).mkdir(parents=True, mode=0o700)
        (new / "HEAD").write_text("ref: refs/heads/none\n")
        (new / "info" / "attributes").write_text(_ATTRIBUTES)
        ignores_case = os.path.lexists(new / "hEAD")
        config = _CONFIG.format(
            version=1 if self.object_format == "sha256" else 0,
            object_format=self.object_format,
            ignore_case=str(ignores_case).lower(),
            # Linux may have files with such names, and a snapshot must hold them.
            protect=str(not sys.platform.startswith("linux") or ignores_case).lower(),
        )
        if self.object_format == "sha1":  # git before 2.42 takes it for an unknown extension.
            config = config.partition("[extensions]")[0]
        (new / "config").write_text(config)
        (self.folder / "root").write_bytes(os.fsencode(self.root))
        try:
            new.rename(self.git_dir)
        except OSError:  # Another process was faster.
            shutil.rmtree(new, ignore_errors=True)
            if not self.git_dir.is_dir():
                raise

    def git(
        self,
        work_tree: str | None = None,
        index: Path | None = None,
        objects: Sequence[str] = (),
        lock_fd: int | None = None,
    ) -> Git:
        """Return git on this repository.

        Args:
            work_tree: The folder whose files git reads or writes.
            index: The index to use.
            objects: Folders of objects to borrow; none for commands that write objects.
            lock_fd: A lock that git inherits.
        """
        env = clean_env() | {"GIT_DIR": os.fspath(self.git_dir)}
        if work_tree is not None:
            env["GIT_WORK_TREE"] = work_tree
        if index is not None:
            env["GIT_INDEX_FILE"] = os.fspath(index)
        if objects:
            env["GIT_ALTERNATE_OBJECT_DIRECTORIES"] = ":".join(quote_folder(o) for o in objects)
        return Git(self.program, env, work_tree or os.fspath(self.git_dir), lock_fd)

    def repository(self, folder: str) -> Repository | None:
        """Return the person's repository at *folder*, if its objects can be borrowed."""
        found = read_repository(self.program, folder)
        return found if found is not None and found.object_format == self.object_format else None

    def index(self, name: str) -> Path:
        """Return the path of the index *name*."""
        return self.git_dir / "indexes" / name

    @contextmanager
    def locked(self) -> Generator[int]:
        """Hold the lock on the indexes of the project; yield its descriptor.

        Raises:
            CopyBusy: Another process holds it for longer than LOCK_WITHIN_S.
        """
        with locked(self.folder / "lock", LOCK_WITHIN_S) as fd:
            for left in (self.git_dir / "indexes").glob("*.lock"):  # Of a git that was killed.
                left.unlink(missing_ok=True)
            yield fd

    def keep(self, name: str, objects: Iterable[str]) -> None:
        """Make refs to *objects*, so that they are kept until `forget` is called with *name*."""
        lines = "".join(
            f"update refs/snapshots/{name}/{number} {each}\n" for number, each in enumerate(objects)
        )
        self.git().run("update-ref", "--stdin", stdin=lines.encode())

    def forget(self, name: str) -> None:
        """Remove the refs that `keep` made with *name*."""
        git = self.git()
        found = git.run("for-each-ref", "--format=delete %(refname)", f"refs/snapshots/{name}/")
        if found:
            git.run("update-ref", "--stdin", stdin=found)

    def contents(self, ids: Iterable[str], objects: Sequence[str]) -> dict[str, bytes | None]:
        """Return the contents of blobs; None for one that is missing or over BLOB_LIMIT."""
        wanted = list(dict.fromkeys(ids))
        git = self.git(objects=objects)
        found: dict[str, bytes | None] = dict.fromkeys(wanted)
        listing = "".join(f"{each}\n" for each in wanted).encode()
        sizes = git.run("cat-file", "--batch-check", stdin=listing).split(b"\n")
        small: list[str] = []
        for each, line in zip(wanted, sizes, strict=False):
            words = line.split(b" ")
            if len(words) == 3 and words[1] == b"blob" and int(words[2]) <= BLOB_LIMIT:
                small.append(each)
        for each in small:
            found[each] = git.run("cat-file", "blob", each)
        return found

    def write_blob(self, content: bytes) -> str:
        """Write a blob and return its id."""
        return self.git().run("hash-object", "-w", "--stdin", stdin=content).decode().strip()

    def empty_tree(self) -> str:
        """Return the id of a tree without files, which is written."""
        return self.git().run("mktree").decode().strip()


def quote_folder(path: str) -> str:
    """Return *path* as git reads it in a list of object folders."""
    if not (":" in path or "\n" in path or path.startswith(('"', "#"))):
        return path
    quoted = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{quoted}"'


@contextmanager
def locked(path: Path, within_s: float) -> Generator[int]:
    """Hold the lock file *path*; yield its descriptor.

    Raises:
        CopyBusy: Another process holds it for longer than *within_s* seconds.
    """
    until = time.monotonic() + within_s
    fd = open_lock(path)
    try:
        while not lock(fd):
            if time.monotonic() >= until:
                raise CopyBusy(f"another process uses {path.parent}")
            time.sleep(0.02)
        yield fd
    finally:
        os.close(fd)


def is_locked_now(path: Path) -> bool:
    """Return True if another process holds the lock file *path*."""
    try:
        with locked(path, 0):
            return False
    except CopyBusy:
        return True
    except OSError:
        return False


def prune(shadow: Shadow, older_than_s: float) -> None:
    """Delete the objects that no snapshot needs and that are older than *older_than_s*.

    Each project or result that came from another machine left a pack. `git prune` does not look
    into packs, so many of them become one; newer objects that nothing needs yet stay.
    """
    expiry = int(time.time() - older_than_s)
    with suppress(GitFailed), shadow.locked():
        if sum(1 for _ in (shadow.git_dir / "objects" / "pack").glob("*.pack")) > PACKS_LIMIT:
            shadow.git().run("repack", "-A", "-d", "-l", "-q", f"--unpack-unreachable={expiry}")
        shadow.git().run("prune", f"--expire={expiry}")
