"""Find a person's request in a recorded user message.

Clients put the context of a request before it: open tabs, attached files, the page in a browser.
Codex itself records instructions and results of its own as messages of the user. Codex's lists
show only what follows the marker `## My request for Codex:` (seen on 0.98.0 to 0.171.0).
"""

from __future__ import annotations

import re

_MARKER = re.compile(r"^## My request(?: for Codex)?:", re.MULTILINE)
"""Begins the request. Codex 0.171.0 writes the long form; desktop clients of 2026 the short one."""

_SECTIONS = (
    "# Context from my IDE setup:",
    "# Files mentioned by the user:",
    "# Files pasted by the user:",
    "# In app browser:",
    "## Referenced chats with Codex:",
)
"""The first lines of sections that a client writes; without a marker, there is no request."""

_PERHAPS_SECTIONS = (
    "# Browser comments:",
    "# Diff comments:",
    "# Review findings:",
    "# Selected text:",
)
"""First lines of such sections that a person may also write; without a marker, all is a request."""

_AGENTS = re.compile(r"# AGENTS\.md instructions[^\n]*\s*<INSTRUCTIONS>")
"""How Codex 0.60.1 to 0.171.0 begins to record AGENTS.md."""

_TAG = re.compile(r"<([A-Za-z][A-Za-z_-]*)(?: [^<>\n]{0,1000})?>")
_SPACE = re.compile(r"\s*")

_CONTEXT_TAGS = frozenset((
    *("INSTRUCTIONS", "app-context", "apps_instructions", "audio", "codex_internal_context"),
    *("collaboration_mode", "environment_context", "hook_prompt", "image", "image_resize_notice"),
    *("in-app-browser-context", "model_switch", "personality_spec", "plugins_instructions"),
    *("recommended_plugins", "skill", "skills_instructions", "subagent_notification"),
    *("system-reminder", "turn_aborted", "user_action", "user_instructions"),
    *("user_shell_command", "user_verification_notice"),
))  # fmt: skip
"""Tags around what no person wrote in this message."""

_REQUEST_TAGS = {
    "codex_delegation": "input",
    "realtime_delegation": "input",
    "send_user_message_question_reply": "",
}
"""Tags around a request; the value is the tag inside that contains only the request's words."""

_IMAGE_END = "</image>"


def request_in(text: str | None) -> str | None:
    """Return the person's request in a recorded user message; None if there is none.

    In a message that begins as a client or Codex begins its context, the request follows the first
    marker. In any other message, a marker is part of what the person wrote. The time is linear in
    the length of *text*.
    """
    text = text.strip() if text else ""
    if not text.startswith(("#", "<")):
        return _without_images(text) or None
    at = _skip_context(text)
    if text.startswith((*_SECTIONS, *_PERHAPS_SECTIONS), at) or _MARKER.match(text, at):
        marker = _MARKER.search(text, at)
        if marker is not None:
            at = marker.end()
        elif text.startswith(_SECTIONS, at):
            return None
    return _without_images(_unwrapped(text[at:].strip())) or None


def _skip_context(text: str) -> int:
    """Return the offset in *text* after the blocks of context at its start."""
    at = 0
    while True:
        if begin := _AGENTS.match(text, at):
            closing = "</INSTRUCTIONS>"
        elif (begin := _TAG.match(text, at)) and begin[1] in _CONTEXT_TAGS:
            closing = f"</{begin[1]}>"
        else:
            return at
        end = text.find(closing, begin.end())
        if end < 0:
            return at
        at = _after_space(text, end + len(closing))


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def _unwrapped(request: str) -> str:
    """Return *request* without a tag of _REQUEST_TAGS around all of it."""
    tag = _TAG.match(request)
    if tag is None or tag[1] not in _REQUEST_TAGS or not request.endswith(f"</{tag[1]}>"):
        return request
    content = request[tag.end() : -len(tag[1]) - 3]
    if inner := _REQUEST_TAGS[tag[1]]:
        _, begun, rest = content.partition(f"<{inner}>")
        content = rest.rpartition(f"</{inner}>")[0] if begun else content
    return content.strip()


def _without_images(request: str) -> str:
    """Return *request* without the places of images at its end, which contain no words."""
    end = len(request)
    while request.endswith(_IMAGE_END, 0, end):
        start = request.rfind("<image", 0, end)
        tag = _TAG.match(request, max(start, 0))
        if tag is None or request[tag.end() : end - len(_IMAGE_END)].strip():
            break
        end = start
        while end and request[end - 1].isspace():
            end -= 1
    return request[:end]
