"""Hold the patterns that recognize Codex's error texts, each with its error kind and hint.

Codex has no error codes. It prints sentences, which change with each version, and passes on the
provider's JSON. The patterns match texts of real binaries, 0.60.1 to 0.171.0, and of programs
that start Codex. `tests/data/messages.json` holds the texts, docs/errors.md shows them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from codex_tools.codex.errors import Kind


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern of an error text, and what it means."""

    kind: Kind
    pattern: re.Pattern[str]
    hint: str
    retryable: bool = False


KINDS_BY_CODE: dict[str, Kind] = {
    "badRequest": "invalid_request",
    "bioPolicy": "refused",
    "contextWindowExceeded": "context_window_exceeded",
    "cyberPolicy": "refused",
    "inferenceHookDenied": "refused",
    "internalServerError": "overloaded",
    "misalignmentPolicyViolation": "refused",
    "modelNotFound": "model_unavailable",
    "rateLimitExceeded": "rate_limited",
    "serverOverloaded": "overloaded",
    "unauthorized": "not_authenticated",
    "usageLimitExceeded": "usage_limit",
}
"""Kinds of failure by the app-server's code (seen or in the schema of 0.171.0).

`other` says nothing. Codes that no kind fits are left to the text.
"""

KINDS_BY_STATUS: dict[str, Kind] = {
    "400": "invalid_request",
    "401": "not_authenticated",
    "403": "not_authenticated",
    "404": "model_unavailable",
    "429": "rate_limited",
}
"""Kinds by the HTTP status that comes with a code."""


def _rule(kind: Kind, pattern: str, hint: str, *, retryable: bool = False) -> Rule:
    return Rule(kind, re.compile(pattern, re.IGNORECASE), hint, retryable)


def _no_start(pattern: str, hint: str, *, retryable: bool = False) -> Rule:
    return _rule("not_started", pattern, hint, retryable=retryable)


START_RULES = (
    _no_start(
        r"database (table )?is locked|another codex process is using its local data"
        r"|pool timed out while waiting",
        "Another Codex process holds Codex's database. Call again in a moment; if this goes on,"
        " end the other process.",
        retryable=True,
    ),
    _no_start(
        r"resource temporarily unavailable|\bos error 11\)|text file busy|\bos error 26\)",
        "The machine had no process to spare, or the program file was being replaced. Call again"
        " in a moment, and run fewer calls at once.",
        retryable=True,
    ),
    _no_start(
        r"read-only file system|\bos error 30\)",
        "Codex must write to its CODEX_HOME, which is read-only here. Make it writable, or start"
        " this server with CODEX_HOME set to a folder that is.",
    ),
    _no_start(
        r"no space left on device|\bos error 28\)|disk quota exceeded|database or disk is full",
        "The disk of CODEX_HOME or of the temporary folder is full. Free space on it, then call"
        " again.",
    ),
    _no_start(
        r"too many open files|no file descriptors available|\bos error 2[34]\)",
        "Raise the limit of open files (ulimit -n) of the program that starts this server, and"
        " run fewer calls at once.",
    ),
    _no_start(
        r"database disk image is malformed|file is not a database"
        r"|migration \d+ was previously applied|failed to initialize.{0,20} (sqlite|state runtime)",
        "Codex cannot use its own database. Run `codex doctor`, or move state_*.sqlite and"
        " logs_*.sqlite out of CODEX_HOME: Codex makes new ones, and its threads are kept.",
    ),
    _no_start(
        r"permission denied|operation not permitted|unable to open database file"
        r"|\bos error (1|13)\)",
        "Codex may not use a file that it needs. Check the owner and the rights of CODEX_HOME and"
        " of cwd; do not delete threads.",
    ),
    _no_start(
        r"blocked by .{0,40}hook|\bhook .{0,80}(blocked|stopped|denied)",
        "A hook in Codex's configuration stopped the prompt. Change the prompt as its message"
        " says, or ask the owner of the hook.",
    ),
    _no_start(
        r"(no|without a) version is set|no version set|mise error|asdf: |volta error"
        r"|no preset version|version manager"
        r"|(?<!\w)\w{0,20}env: .{1,60}(command not found|is not installed)",
        "The version manager that starts Codex has no version of it for this folder. Set one"
        " there, or set --codex-bin to the Codex binary itself.",
    ),
    _no_start(
        r"\bnode['\u2019]?: (no such file|command not found|not found|permission denied)",
        "npm's `codex` script needs Node.js, which is not on this server's PATH. Install it, or"
        " set --codex-bin to the native Codex binary.",
    ),
    _no_start(
        r"GLIBC_[\d.]+' not found|error while loading shared libraries|cannot execute binary file",
        "This Codex binary does not fit the machine. Install the one for it: npm install -g"
        " @openai/codex.",
    ),
    _no_start(
        r"failed to read (thread|session metadata)|empty session file"
        r"|failed to parse conversation ID from rollout",
        "The record of this thread on disk is damaged. Begin a new thread with codex_run.",
    ),
)
"""Errors of the machine and of programs that start Codex, before Codex's first event."""

_LOGIN = (
    "Run `codex login` in a terminal, or put the provider's key into this server's environment."
    " Then call again."
)

RULES = (
    _rule(
        "bad_config",
        r"error loading (config|rules)|error finding codex home|codex_home points|toml parse error"
        r"|config profile .{1,80} not found|required mcp servers failed|failed to parse config"
        r"|no longer supported; (remove|use) |model provider .{1,80} not found"
        r"|error parsing -c overrides|unknown feature flag|no default oss provider"
        r"|failed to (read|parse) (model_catalog_json|(model|experimental) instructions)"
        r"|invalid .{1,40} requirement|requirements\.toml|(configuration|managed) requirements",
        "Correct Codex's own configuration at the place that the message names.",
    ),
    _rule(
        "refused",
        r"unsupported_country|country, region, or territory not supported"
        r"|unavailable for legal reasons|not available in your (country|region)",
        "The provider does not serve the country or network that the request came from. Run this"
        " server where it is served, or configure another provider.",
    ),
    _rule(
        "network",
        r"407 proxy|\bproxy authentication required|\bstatus:? 407\b|511 network authentication",
        "A proxy between Codex and the provider asks for a login. Put its user and password into"
        " HTTPS_PROXY in this server's environment.",
    ),
    _rule(
        "network",
        r"blocked by cloudflare|<title>(just a moment|attention required)"
        r"|\bstatus:? 4\d\d\b.{0,60}<(!doctype )?html",
        "A web page answered instead of the provider: Cloudflare, a proxy or a firewall blocks this"
        " network, or base_url is wrong. Check HTTPS_PROXY, VPN and base_url.",
    ),
    _rule(
        "usage_limit",
        r"hit your usage limit|usage_limit_reached|(?<!disk )quota exceeded|insufficient_quota"
        r"|usage_not_included|out of credits|spend(ing)? (limit|cap)"
        r"|to use codex with your chatgpt plan",
        "The account's allowance is used up; a retry now will fail. Wait until the time that the"
        " message names, or use another account or model.",
    ),
    _rule(
        "context_window_exceeded",
        r"ran out of room in the model's context|context_length_exceeded|context window"
        r"|maximum context length",
        "Begin a new thread with codex_run, and give it only what the task needs.",
    ),
    _rule(
        "prompt_too_large",
        r"exceeds the maximum length of \d+ characters|input_too_large",
        "Shorten the prompt: put the material into files inside cwd and name the files.",
    ),
    _rule(
        "invalid_output_schema",
        r"invalid schema for response_format|invalid_json_schema|output schema file",
        "Correct output_schema. The provider accepts only strict schemas: every object needs"
        " additionalProperties: false and all its properties in required.",
    ),
    _rule(
        "refused",
        r"^invalid prompt\b|invalid_prompt|before completion: invalid prompt|content[_ ]policy"
        r"|content[_ ]filter|usage policy|cyber_policy|flagged",
        "The provider declined the request under its policy. Rephrase the request, or drop it.",
    ),
    _rule(
        "model_unavailable",
        r"model_not_found|\bmodel is not supported\b"
        r"|model .{0,80}(does not exist|is not supported|not available|not found)"
        r"|do not have access to it|must be verified to use the model",
        "Leave model out to use Codex's default, or name one that this account can use.",
    ),
    _rule(
        "not_authenticated",
        r"login is (required, but|restricted to)|invalid_workspace_selected|deactivated_workspace",
        "Codex's configuration or its account allows another login or workspace only. Run `codex"
        " login` in a terminal with the one that the message names.",
    ),
    _rule(
        "not_authenticated",
        r"status:? 401\b|401 unauthorized|invalid_api_key|incorrect api key"
        r"|not logged in|log ?in again|sign(ing)? in again|signed in to another account"
        r"|session has expired|refresh token|token (has |is )?expired"
        r"|missing environment variable|authentication",
        _LOGIN,
    ),
    _rule(
        "not_authenticated",
        r"status:? 403\b|403 forbidden",
        "The provider refuses this account or key. Check its rights; to use another one, run"
        " `codex login` in a terminal.",
    ),
    _rule(
        "overloaded",
        r"server_is_overloaded|at capacity|experiencing high demand|overloaded"
        r"|status:? 5\d\d\b|internal server error|bad gateway|service unavailable",
        "The provider is overloaded. Call again in a minute, or name another model.",
        retryable=True,
    ),
    _rule(
        "rate_limited",
        r"status:? 429\b|429 too many requests|rate[_ ]limit",
        "Wait a moment and call again. Run fewer calls at once.",
        retryable=True,
    ),
    _rule(
        "thread_busy",
        r"already has an active writer",
        "Another process is writing to this thread. Wait until that process has ended, then call"
        " again.",
        retryable=True,
    ),
    _rule(
        "thread_not_found",
        r"no rollout found for thread|failed to resolve rollout path|no saved session found"
        r"|session not found",
        "Check the thread_id, or begin a new thread with codex_run.",
    ),
    _rule(
        "untrusted_directory",
        r"not inside a trusted directory",
        "By default, Codex works only inside git repositories. Set cwd to a folder inside one, or"
        " set skip_git_repo_check: true to work in this folder.",
    ),
    _rule(
        "codex_unsupported",
        r"error: unexpected argument|unrecognized subcommand|requires a newer version of codex",
        "The installed Codex is too old for an option or model. Update Codex: npm install -g"
        " @openai/codex.",
    ),
    _rule(
        "codex_not_found",
        r"missing optional dependency @openai/codex|\bspawn .{1,300} (ENOENT|EACCES)",
        "npm has not installed Codex's native binary. Install it: npm install -g"
        " --include=optional @openai/codex.",
    ),
    _rule(
        "codex_not_found",
        r"^cannot run .* in ",  # Written by guard.py, not by Codex.
        "Check both paths: the program or the folder no longer exists, or access is denied.",
    ),
    _rule(
        "network",
        r"connection failed|error sending request|dns error|failed to lookup address"
        r"|waiting for network|stream disconnected|stream closed before|connection (reset|refused)"
        r"|idle timeout waiting for sse|timed? ?out|tls handshake|reconnecting\.\.\.",
        "The provider could not be reached, or the connection broke. Check the network, then"
        " continue with codex_resume.",
        retryable=True,
    ),
    _rule(
        "bad_config",
        r"status:? 404\b|404 not found",
        "The provider has no such address. Check base_url and wire_api of the model provider in"
        " Codex's configuration.",
    ),
    _rule(
        "invalid_request",
        r"invalid_request_error|status:? 4\d\d\b|400 bad request"
        r"|invalid image in your last message",
        "Change the request as the message says; the provider rejected it.",
    ),
)
"""Errors that Codex reports at any time; the first rule that matches decides."""
