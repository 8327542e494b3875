"""Read the layers of Codex's configuration: what a turn depends on, in whatever file it is set.

Codex 0.147.0 to 0.171.0 merge, from the weakest layer to the strongest: `/etc/codex/config.toml`,
`config.toml` in CODEX_HOME, the profile's file there (0.134.0 and later), `.codex/config.toml` of
each trusted folder from the project's root down to the run's folder, `-c` on the command line, and
`/etc/codex/managed_config.toml`. 0.60.1 and 0.77.0 read only the second and the last two.
The MCP servers of installed plugins count too. Of `requirements.toml` only the limit of web search
is read here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

import orjson
import tomli

from codex_tools.codex.foreign_file import open_foreign_file, read_foreign
from codex_tools.codex.paths import codex_home
from codex_tools.codex.toml import to_toml
from codex_tools.engines.project_trust import Project, find_project

MACHINE_FOLDER = Path("/etc/codex")
"""Folder of the machine's own layers."""

SIZE_LIMIT = 1024 * 1024
"""Maximum bytes of a file; a repository chooses the size of its own."""

_NAMING_KEYS = ("env_key", "bearer_token_env_var", "env_vars", "env_http_headers")
"""Keys whose values are names of variables that Codex reads."""

_NAMED_IN_TEXT = re.compile(
    rf"""(?:{"|".join(_NAMING_KEYS)})["']?\s*=\s*("[^"\n]*"|'[^'\n]*'|\[[^\]]*\]|\{{[^}}]*\}})"""
)
_QUOTED_NAME = re.compile(r"""["']([A-Za-z_][A-Za-z0-9_]*)["']""")

MERGED_SERVERS = "mcp_servers"
"""Key of a setting that 0.77.0 and later merge; 0.60.1 would replace all servers by it."""

_DOTTED_PART = re.compile(r"[A-Za-z0-9_-]+")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")

_PROVIDER_VARIABLES = {"amazon-bedrock": ("AWS_BEARER_TOKEN_BEDROCK",)}
"""Secrets that a built-in provider reads without being told their names (0.147.0, 0.171.0).

Its other variables (AWS_*), those of openai (OPENAI_*, CODEX_API_KEY, CODEX_ACCESS_TOKEN), and
CODEX_OSS_BASE_URL and CODEX_OSS_PORT of ollama and lmstudio are never withheld from Codex.
"""


_OTEL_HEADERS = tuple(
    f"OTEL_EXPORTER_OTLP_{signal}HEADERS" for signal in ("", "LOGS_", "METRICS_", "TRACES_")
)
"""Variables that Codex sends as headers where `[otel]` names an exporter (0.60.1 to 0.171.0)."""


WebSearch = Literal["disabled", "cached"]

_SEARCH_OFF_IN_TEXT = re.compile(r"""^\s*web_search\s*=\s*["']disabled["']""", re.MULTILINE)


_PLACEHOLDERS = {"url": "http://127.0.0.1", "command": "false"}
"""Transports of disabled MCP servers. A real URL may hold a secret; command lines are public."""


@dataclass(frozen=True, slots=True)
class CodexConfig:
    """The parts of Codex's own configuration that concern the command line and the environment."""

    named: frozenset[str] = frozenset()
    """Variables that Codex reads: provider keys, headers, tokens of MCP servers."""
    excluded: tuple[str, ...] = ()
    """Globs that any layer already keeps from commands."""
    exclusion_is_managed: bool = False
    """True if a layer stronger than the command line sets what is kept from commands."""
    mcp_servers: Mapping[str, str] = field(default_factory=dict[str, str])
    """The MCP servers of all layers by name, those of folders without trust included.

    Each value is the key of the server's transport: `command` or `url`.
    """
    project: Project | None = None
    """The project of the turn; None if no folder was given."""
    web_search: WebSearch | None = None
    """The most that the person allows of web search; None if no layer says less than `live`."""
    service_tier: str | None = None
    """The service tier that the turn asks for; None if no layer names one."""
    problems: tuple[str, ...] = ()
    """A sentence for each file that could not be read as TOML."""


def read_config(
    home: Path | None,
    profile: str | None = None,
    cwd: Path | None = None,
    settings: Iterable[tuple[str, str]] = (),
    machine: Path = MACHINE_FOLDER,
) -> CodexConfig:
    """Read all layers of Codex's configuration that concern a turn.

    A file that is not valid TOML is searched for the names of variables, because Codex itself
    may accept it.

    Args:
        home: CODEX_HOME; None to ask the environment.
        profile: The profile of the turn.
        cwd: The folder of the turn, for the layers of its project.
        settings: Settings of the turn: pairs of a dotted key and its value in TOML.
        machine: Folder of the machine's layers.
    """
    home = home if home is not None else codex_home()
    reader = _Reader()
    files = [machine / "config.toml", home / "config.toml"]
    if profile:
        files.append(home / f"{profile}.config.toml")
    for file in files:
        reader.read(file)
    managed = reader.read(machine / "managed_config.toml")
    of_caller = [_parse(f"{key} = {value}") for key, value in settings]
    for table in of_caller:
        reader.take(table)
    for plugin in reader.plugins():
        reader.read_plugin(home, plugin)
    project = find_project(cwd, reader.tables) if cwd is not None else None
    if project is not None:
        for folder, trusted in project.folders:
            if folder / ".codex" != home:
                reader.read(folder / ".codex" / "config.toml", trusted=trusted)
    return CodexConfig(
        frozenset(reader.named),
        tuple(reader.excluded),
        "exclude" in _table(managed.get("shell_environment_policy")),
        reader.servers,
        project,
        _search_limit(
            [*(t for t in reader.tables if not any(t is c for c in of_caller)), managed],
            _requirements(machine, reader),
            profile,
        ),
        _last_text([*reader.tables, managed], "service_tier"),
        tuple(reader.problems),
    )


def without_mcp_servers(config: CodexConfig, names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the settings that disable the MCP servers *names* of *config*, as key and TOML value.

    `mcp_servers={}` has no effect on 0.77.0 to 0.171.0, which merge it. Each setting has a
    transport of the same kind: Codex ends with "invalid transport" at a server that only this
    reader knows, because its folder is not trusted or its layer is younger than Codex.
    """
    pairs: list[tuple[str, str]] = []
    others: dict[str, dict[str, object]] = {}
    for name in names:
        key = config.mcp_servers[name]
        placeholder = _PLACEHOLDERS[key]
        if _DOTTED_PART.fullmatch(name) is None:
            others[name] = {key: placeholder, "enabled": False}
            continue
        pairs.append((f"mcp_servers.{name}.{key}", to_toml(placeholder)))
        pairs.append((f"mcp_servers.{name}.enabled", "false"))
    if others:  # Only 0.163.0 and later start servers of such names. Later keys extend the table.
        pairs.insert(0, (MERGED_SERVERS, to_toml(others)))
    return pairs


class _Reader:
    """Collects what the layers say, one after the other."""

    def __init__(self) -> None:
        self.named: set[str] = set()
        self.excluded: list[str] = []
        self.servers: dict[str, str] = {}
        self.problems: list[str] = []
        self.tables: list[dict[str, object]] = []

    def read(self, file: Path, *, trusted: bool = True) -> dict[str, object]:
        """Read one layer and return it; empty if it is missing or is not valid TOML."""
        try:
            if not file.is_file():
                return {}
            with open_foreign_file(file, follow=True) as opened:
                data = opened.read(SIZE_LIMIT + 1)
        except OSError as error:
            self.problems.append(f"Codex's configuration {file} cannot be read: {error.strerror}.")
            return {}
        text = data.decode("utf-8-sig", "replace")
        try:
            if len(data) > SIZE_LIMIT:
                raise ValueError(f"it has more than {SIZE_LIMIT:,} bytes")
            table = _parse(text)
            if trusted:
                self.take(table)
            else:
                self._take_servers(table)
        except (ValueError, RecursionError) as error:
            problem = str(error) or type(error).__name__
            self.problems.append(
                f"Codex's configuration {file} was not read as TOML ({problem[:200]});"
                " its environment variables were searched in its text,"
                " and its MCP servers are unknown."
            )
            if trusted:
                self.named.update(_named_in(text))
                if _SEARCH_OFF_IN_TEXT.search(text):
                    self.tables.append({"web_search": "disabled"})
            return {}
        return table

    def plugins(self) -> set[str]:
        """Return the installed plugins that the layers name, as `NAME@MARKETPLACE`."""
        return {name for table in self.tables for name in _table(table.get("plugins"))}

    def read_plugin(self, home: Path, plugin: str) -> None:
        """Read the MCP servers of a plugin: settings of their names disable them (0.147 to 0.171).

        0.60.1 has no plugins. A person has installed the plugin, so its servers may name variables.
        """
        name, _, marketplace = plugin.rpartition("@")
        if not (_PLAIN_NAME.fullmatch(name) and _PLAIN_NAME.fullmatch(marketplace)):
            return
        for folder in (home / "plugins" / "cache" / marketplace / name).glob("*"):
            listed = _read_json(folder / ".codex-plugin" / "plugin.json").get("mcpServers")
            servers = _table(listed)
            if not servers:
                file = listed if isinstance(listed, str) else ".mcp.json"
                servers = _read_json(folder / file)
            servers = _table(servers.get("mcpServers", servers))
            self.named.update(_named(servers))
            own = dict(self.servers)
            self._take_servers({"mcp_servers": servers})
            self.servers |= own  # What the person says of a server is stronger.

    def take(self, table: dict[str, object]) -> None:
        """Take what a layer that Codex reads says."""
        self.tables.append(table)
        self.named.update(_named(table))
        self.excluded += _strings(_table(table.get("shell_environment_policy")).get("exclude"))
        self._take_servers(table)

    def _take_servers(self, table: dict[str, object]) -> None:
        for name, server in _table(table.get("mcp_servers")).items():
            for key in _PLACEHOLDERS:
                if isinstance(_table(server).get(key), str):
                    self.servers[name] = key
                    break


def _requirements(machine: Path, reader: _Reader) -> dict[str, object]:
    own = _Reader()
    table = own.read(machine / "requirements.toml")
    reader.problems += own.problems
    return table


def _last_text(tables: Sequence[dict[str, object]], key: str) -> str | None:
    """Return the text that the strongest of *tables*, the last one with *key*, has there."""
    found = [value for table in tables if isinstance(value := table.get(key), str)]
    return found[-1] if found else None


def _search_limit(
    tables: Sequence[dict[str, object]], requirements: dict[str, object], profile: str | None
) -> WebSearch | None:
    """Return the most that the person's *tables*, the strongest last, allow of web search.

    0.98.0 and later read `web_search`, and no other key lifts it (0.171.0). 0.60.1 reads the older
    keys only. Each is taken for what the person means, whichever Codex runs.
    """
    limits: list[WebSearch | None] = [_search_of(tables)]
    names = [profile, *(table.get("profile") for table in tables)]
    for name in names:
        if isinstance(name, str):  # Tables of profiles, which 0.134.0 and later do not read.
            found = [_table(_table(table.get("profiles")).get(name)) for table in tables]
            limits.append(_search_of(found))
    modes = requirements.get("allowed_web_search_modes")
    if isinstance(modes, list) and "live" not in modes:
        limits.append("cached" if "cached" in modes else "disabled")
    return "disabled" if "disabled" in limits else "cached" if "cached" in limits else None


def _search_of(tables: Sequence[dict[str, object]]) -> WebSearch | None:
    mode: object = None
    older: dict[str, object] = {}
    for table in tables:
        mode = table.get("web_search", mode)
        older |= {f"tools.{key}": value for key, value in _table(table.get("tools")).items()}
        older |= _table(table.get("features"))
    if mode is None and False in (older.get("tools.web_search"), older.get("web_search_request")):
        return "disabled"
    return mode if mode in ("disabled", "cached") else None


def _read_json(file: Path) -> dict[str, object]:
    try:
        return _table(orjson.loads(read_foreign(file, SIZE_LIMIT, follow=True)))
    except (OSError, ValueError):
        return {}


def _parse(text: str) -> dict[str, object]:
    return cast(dict[str, object], tomli.loads(text))


def _table(value: object) -> dict[str, object]:
    return cast(dict[str, object], value) if isinstance(value, dict) else {}


def _named(node: object) -> Iterator[str]:
    if isinstance(node, list):
        for each in cast(list[object], node):
            yield from _named(each)
    if not isinstance(node, dict):
        return
    for key, value in cast(dict[str, object], node).items():
        if key in _NAMING_KEYS:
            yield from _strings(value)
        elif key == "model_provider" and isinstance(value, str):
            yield from _PROVIDER_VARIABLES.get(value, ())
        elif key == "otel" and any(isinstance(each, dict) for each in _table(value).values()):
            yield from _OTEL_HEADERS
        yield from _named(value)


def _named_in(text: str) -> Iterator[str]:
    for found in _NAMED_IN_TEXT.finditer(text):
        yield from _QUOTED_NAME.findall(found[1])
    for provider, names in _PROVIDER_VARIABLES.items():
        if provider in text:
            yield from names


def _strings(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for each in cast(list[object], value):
                yield from _strings(each)
        case dict():
            # {header = NAME}, and since 0.120 {name = NAME, source = "..."} of MCP servers.
            for each in cast(dict[str, object], value).values():
                yield from _strings(each)
        case _:
            pass
