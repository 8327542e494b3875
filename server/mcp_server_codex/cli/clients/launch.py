"""Find a command by which a client can start this server, with a path that stays valid."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from codex_tools.codex.paths import make_absolute
from mcp_server_codex.settings import OPTIONS, read_settings

PACKAGE = "mcp-server-codex"

_UV_CACHE = re.compile(r"(?:archive|builds|environments)-v\d+")


def find_command(environ: Mapping[str, str]) -> list[str]:
    """Return the command that starts this server.

    The path is absolute, because applications do not have the shell's PATH. uvx
    and `pipx run` delete their environments, so from there the command is uvx or
    `pipx run` again.
    """
    folder = Path(sys.prefix)
    if _UV_CACHE.fullmatch(folder.parent.name):
        uv = environ.get("UV") or shutil.which("uv") or "uv"
        uvx = Path(uv).with_name("uvx")
        run = [str(uvx)] if uvx.exists() else [uv, "tool", "run"]
        wanted = requirement()
        return [*run, PACKAGE] if wanted == PACKAGE else [*run, "--from", wanted, PACKAGE]
    if folder.parent.name in (".cache", "pipx") and "pipx" in folder.parts[-3:-1]:
        pipx, wanted = shutil.which("pipx") or "pipx", requirement()
        spec = [] if wanted == PACKAGE else ["--spec", wanted]
        return [pipx, "run", *spec, PACKAGE]
    # Links are not resolved: ~/.local/bin/mcp-server-codex exists longer than its target.
    for script in (Path(sys.argv[0]).absolute(), Path(sys.executable).with_name(PACKAGE)):
        if script.name == PACKAGE and os.access(script, os.X_OK):
            return [os.path.normpath(script)]
    return [sys.executable, "-m", "mcp_server_codex"]


def requirement() -> str:
    """Return the requirement that installs this package again from the same source."""
    extra = "[codex]" if find_spec("codex_cli_bin") else ""
    try:
        origin = distribution(PACKAGE).read_text("direct_url.json")
    except PackageNotFoundError:
        origin = None
    if origin is None:
        return PACKAGE + extra
    place: dict[str, Any] = json.loads(origin)
    url, git = str(place["url"]), place.get("vcs_info")
    if git:
        url = f"{git['vcs']}+{url}@{git['commit_id']}"
    return f"{PACKAGE}{extra} @ {url}"


def read_options(words: Sequence[str], fail: Callable[[str], NoReturn]) -> list[str]:
    """Return the server's own options *words* with absolute paths, after checking them.

    Args:
        words: The options as typed.
        fail: Called with a message if the server would not start with the options.
    """
    # The client starts the server in another folder and with another environment.
    read_settings(words, {}, fail)
    kinds = {option.flag: option.metavar for option in OPTIONS}
    options: list[str] = []
    for word in words:
        if "--" in options:  # Only folders (roots) follow.
            options.append(word if word.startswith("~") else make_absolute(word))
            continue
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        before = flag if equals else options[-1] if options else ""
        is_path = kinds.get(before) in ("DIR", "FILE") or (
            kinds.get(before) == "PATH" and "/" in value
        )
        if is_path and value and not value.startswith("~"):
            value = make_absolute(value)
        options.append(f"{flag}{equals}{value}")
    return options
