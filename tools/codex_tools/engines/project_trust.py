"""Find the project that a turn works in, and decide how far Codex may trust it.

Codex loads the `.codex` folders of a trusted project: its MCP servers, hooks, rules and `notify`
program run outside the sandbox. A person decides that, in the configuration. Codex 0.120.0 to
0.163.0 also decide it themselves: a run that may write makes them add an entry to config.toml.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from codex_tools.codex.errors import CodexUnsupported, NotAllowed
from codex_tools.codex.foreign_file import open_foreign_file
from codex_tools.codex.json_object import Json, object_of
from codex_tools.codex.program import Program, Version
from codex_tools.codex.sandbox import Sandbox
from codex_tools.codex.toml import to_toml

TRUSTS_BY_ITSELF: tuple[Version, Version] = ((0, 99, 0), (0, 169, 0))
"""First version, and end (excluded), that trusts a project because a run may write to it.

Seen with 0.120.0, 0.147.0 and 0.163.0, by workspace-write and danger-full-access. Not seen with
0.60.1, 0.98.0, 0.169.0 and 0.171.0. The range is the widest possible.
"""

OBEYS_UNTRUSTED: Version = (0, 147, 0)
"""First version that adds no entry where one says "untrusted"; 0.120.0 still does."""

UNTRUSTED_UNREAD: Version = (0, 148, 0)
"""Version from which on Codex may leave out AGENTS.md of an untrusted project.

0.163.0 does, 0.120.0 and 0.147.0 do not.
"""

CHECKS_GITFILES: Version = (0, 163, 0)
"""A version from which on a file `.git` cannot borrow the trust of another repository.

0.120.0 and 0.147.0 believe any file that names a folder in `.git/worktrees` there.
"""

FILES_LIMIT = 1000
"""Files in the `.codex` folders of a project that are compared, at most."""

BYTES_LIMIT = 8 * 1024 * 1024
"""Bytes of the longest file in a `.codex` folder that is compared."""

_TEXTS_ONLY = ("skills", "prompts")
"""Folders in `.codex` that only hold texts for the model, as AGENTS.md is."""


@dataclass(frozen=True, slots=True)
class Project:
    """The folders from the project's root down to that of a turn, and their trust."""

    folders: tuple[tuple[Path, bool], ...]
    """Each folder with True if the configuration trusts it; the last is that of the turn."""
    is_decided: bool = False
    """True if the configuration says how far to trust the folder of the turn."""
    is_borrowed: bool = False
    """True if the file `.git` names a trusted repository that has no such work tree."""
    documents: tuple[str, ...] = ("AGENTS.override.md", "AGENTS.md")
    """Names of the files with instructions for the model."""

    @property
    def trusted(self) -> list[Path]:
        """The folders whose `.codex` Codex loads."""
        return [folder for folder, is_trusted in self.folders if is_trusted]


def find_project(cwd: Path, tables: Iterable[Json]) -> Project:
    """Return the project of *cwd*, as Codex finds it with the configuration *tables*.

    A folder has the trust that the configuration gives it, else that of the root, else that of the
    repository; a parent of the root gives none, and the folder of the turn none to those above it
    (0.120.0 to 0.171.0). A link to nothing is no marker (same versions). 0.163.0 and later pass
    over a folder `.git` without HEAD, which is not done here: older versions do not.
    """
    levels: dict[str, str] = {}
    markers: list[str] = [".git"]
    documents: list[str] = ["AGENTS.override.md", "AGENTS.md"]
    for table in tables:
        projects = object_of(table, "projects")
        for path in projects:
            level = object_of(projects, path).get("trust_level")
            if level in ("trusted", "untrusted"):
                levels[path] = level
                if path.startswith("/"):
                    levels.setdefault(os.path.realpath(path), level)
        if "project_root_markers" in table:
            markers = _texts(table["project_root_markers"])
        documents += _texts(table.get("project_doc_fallback_filenames"))
    around = [cwd, *cwd.parents]
    root = next((f for f in around if any(_exists(f / m) for m in markers)), cwd)
    git_root = next((f for f in around if _exists(f / ".git")), None)
    claimed = _main_work_tree(git_root) if git_root is not None else None
    is_real = git_root is not None and claimed is not None and _knows(claimed, git_root)
    of_root = levels.get(str(root))
    # A file `.git` gives the trust of the repository that it names, not that of its own folder.
    if of_root is None and git_root is not None and (git_root / ".git").is_dir():
        of_root = levels.get(str(git_root))
    of_main = levels.get(str(claimed)) if claimed is not None else None
    if of_root is None and is_real:
        of_root = of_main
    folders = around[: around.index(root) + 1]
    own = levels.get(str(cwd))
    return Project(
        tuple((f, (levels.get(str(f)) or of_root) == "trusted") for f in reversed(folders)),
        is_decided=(own or of_root) is not None,
        is_borrowed=of_main == "trusted" and not is_real,
        documents=tuple(documents),
    )


def decide_trust(
    project: Project, sandbox: Sandbox, program: Program, home: Path
) -> tuple[list[str], str | None]:
    """Return the settings with which Codex trusts no more than the person does, and a warning.

    Codex must not add an entry to config.toml, nor load a `.codex` folder that the person has not
    trusted. An entry on the command line is enough for both. "untrusted" costs AGENTS.md in some
    versions. There the folder of the turn is trusted for this turn instead, if it has nothing in
    `.codex`: that trust does not reach the folders above (0.147.0, 0.163.0).

    Args:
        project: The project of the turn.
        sandbox: The sandbox of the turn.
        program: The Codex that will run.
        home: CODEX_HOME.

    Raises:
        CodexUnsupported: This Codex would trust the `.codex` folder for ever.
    """
    version = program.version
    cwd = project.folders[-1][0]
    if version is None or version >= TRUSTS_BY_ITSELF[1]:
        return [], None
    if project.is_borrowed and version < CHECKS_GITFILES:
        return _projects((each for each, _ in project.folders), "untrusted"), (
            f"The file .git around {cwd} names a repository that does not know this folder, so"
            " Codex did not trust the folder as it trusts that repository."
        )
    if sandbox == "read-only" or project.is_decided or version < TRUSTS_BY_ITSELF[0]:
        return [], None
    is_armed = _has_entries(cwd / ".codex") and cwd / ".codex" != home
    if version < OBEYS_UNTRUSTED:
        if is_armed:
            raise CodexUnsupported(
                f"a way to write in {cwd} without trusting its folder .codex for ever",
                program.version_text,
                "Use sandbox read-only, or update Codex to 0.147.0 or later. A person who knows"
                f" that folder can set trust_level for {cwd} under `projects` in config.toml.",
            )
        return _projects([cwd], "trusted"), None
    if version < UNTRUSTED_UNREAD or not _has_documents(project):
        return _projects([cwd], "untrusted"), None
    if is_armed:
        return _projects([cwd], "untrusted"), (
            f"Codex {program.version_text} has not read AGENTS.md, because nobody has said that the"
            f" project of {cwd} is trusted, and the folder has a .codex that Codex would load."
        )
    return _projects([cwd], "trusted"), None


def _exists(path: Path) -> bool:
    # Path.exists raises an error in a folder that must not be read.
    return os.path.exists(path)  # noqa: PTH110


def _has_documents(project: Project) -> bool:
    folders = [folder for folder, _ in project.folders]
    return any(os.path.lexists(f / name) for f in folders for name in project.documents)


def files_in(project: Project, home: Path | None) -> dict[str, str]:
    """Return the files that Codex loads from a project, each with the id git gives its content.

    The keys are absolute paths. This accesses the disk.

    Args:
        project: The project of a turn.
        home: CODEX_HOME, which is no folder of a project; None if unknown.

    Raises:
        NotAllowed: There is more than can be compared.
    """
    found: dict[str, str] = {}
    for folder in project.trusted:
        place = folder / ".codex"
        if place == home or not os.path.lexists(place):
            continue
        if place.is_symlink() or not place.is_dir():
            found[str(place)] = "link" if place.is_symlink() else "file"
            continue
        for path, folders, names in os.walk(place):
            if Path(path) == place:
                folders[:] = [each for each in folders if each not in _TEXTS_ONLY]
            links = [each for each in folders if Path(path, each).is_symlink()]
            for name in (*names, *links):
                if len(found) >= FILES_LIMIT:
                    raise _uncountable(place, f"it has more than {FILES_LIMIT} files")
                found[f"{path}/{name}"] = _content_id(Path(path, name))
    return found


def _content_id(file: Path) -> str:
    """Return the SHA-1 that git gives the content of *file*; for anything else, what it is."""
    if file.is_symlink():
        return "link"
    if not file.is_file():
        return "no file"
    try:
        with open_foreign_file(file, follow=True) as opened:
            data = opened.read(BYTES_LIMIT + 1)
    except OSError as error:
        return error.strerror or "unreadable"
    if len(data) > BYTES_LIMIT:
        raise _uncountable(file, f"it has more than {BYTES_LIMIT:,} bytes")
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _uncountable(place: Path, problem: str) -> NotAllowed:
    return NotAllowed(f"a trusted project with {place}", problem, "--project-config")


def _projects(folders: Iterable[Path], level: str) -> list[str]:
    entries: dict[str, Mapping[str, str]] = {str(each): {"trust_level": level} for each in folders}
    return [f"projects={to_toml(entries)}"]


def _has_entries(folder: Path) -> bool:
    """Return True if *folder* may hold something.

    A sandbox leaves an empty folder behind, that of 0.120.0 an empty file.
    """
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except FileNotFoundError:
        return os.path.lexists(folder)
    except NotADirectoryError:
        return folder.is_symlink() or not folder.is_file() or folder.stat().st_size > 0
    except OSError:
        return True


def _main_work_tree(root: Path) -> Path | None:
    """Return the main work tree that the file `.git` of *root* names; Codex asks for its trust."""
    text = _first_text(root / ".git")
    if text is None:
        return None
    folder = root / text.removeprefix("gitdir:").strip()
    if folder.parent.name != "worktrees" or folder.parent.parent.name != ".git":
        return None
    return folder.parent.parent.parent


def _knows(main: Path, root: Path) -> bool:
    """Return True if the repository of *main* has the linked work tree *root*."""
    text = _first_text(root / ".git")
    if text is None or (root / ".git").is_symlink():
        return False
    back = _first_text(root / text.removeprefix("gitdir:").strip() / "gitdir")
    if back is None:
        return False
    named = root / text.removeprefix("gitdir:").strip() / back.strip()
    return os.path.realpath(named) == os.path.realpath(root / ".git")


def _first_text(file: Path) -> str | None:
    try:
        if not file.is_file():
            return None
        with open_foreign_file(file, follow=True) as opened:
            return os.fsdecode(opened.read(8192))
    except (OSError, ValueError):
        return None


def _texts(value: object) -> list[str]:
    if not isinstance(value, list):
        return []
    return [each for each in cast("list[object]", value) if isinstance(each, str)]
