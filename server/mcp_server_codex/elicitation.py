"""Questions to the person behind the client, in both protocol eras.

Up to 2025-11-25 the server asks and waits. A server of the 2026 protocol cannot
ask: it hands the question back as the call's result, and is called again with
the answer. So the question bears a seal, which ties the answer to the very
question that was put, once; the model cannot answer it in the arguments.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError

logger = logging.getLogger(__name__)

Ask = Callable[[str], Awaitable[bool]]

ANSWER_WITHIN_S = 600.0
"""How long a person may think about it, while the call waits."""

ANSWERS_ITSELF = ("codex-mcp-client",)
"""Clients that are not believed: `codex exec -s danger-full-access` accepts by itself,
with nobody there (seen with 0.163.0), and does not say whether there is a person."""

_FORM: types.ElicitRequestedSchema = {"type": "object", "properties": {}}
"""Nothing to fill in: to accept is the answer."""

_NAME = "allow"


class Unanswered(Exception):
    """The question goes back to the client, which calls again with the answer."""

    def __init__(self, result: types.InputRequiredResult) -> None:
        super().__init__("the person has to be asked first")
        self.result = result


class Seals:
    """Seals on the questions of this server's life; each is good for one answer."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._open: set[str] = set()

    def seal(self, question: str) -> str:
        """Return a new seal for *question*."""
        number = secrets.token_hex(16)
        self._open.add(number)
        return f"{number}.{self._sign(number, question)}"

    def breaks(self, seal: str | None, question: str) -> bool:
        """Return whether *seal* belongs to *question* and was whole; it is not afterwards."""
        number, _, sign = (seal or "").partition(".")
        if not hmac.compare_digest(sign.encode(), self._sign(number, question).encode()):
            return False
        if number not in self._open:
            return False
        self._open.remove(number)
        return True

    def _sign(self, number: str, question: str) -> str:
        said = f"{number}\n{question}".encode("utf-8", "replace")
        return hmac.new(self._key, said, hashlib.sha256).hexdigest()


def find_asker(
    call: ServerRequestContext[Any, Any], params: types.CallToolRequestParams, seals: Seals
) -> Ask | None:
    """Return how to ask the person, or None where the client offers no way.

    The function returned raises `Unanswered` in the 2026 protocol when the
    question has not been put yet.
    """
    capabilities = call.session.client_capabilities
    offered = capabilities.elicitation if capabilities is not None else None
    client = call.session.client_params
    if client is not None and client.client_info.name in ANSWERS_ITSELF:
        return None
    if offered is None or (offered.form is None and offered.url is not None):
        return None  # Neither one at all, nor with a form; {} means a form.

    async def ask(question: str) -> bool:
        with anyio.move_on_after(ANSWER_WITHIN_S):
            try:
                answer = await call.session.elicit_form(question, _FORM, call.request_id)
            except MCPError as error:
                logger.info("the client could not ask the person: %s", error)
                return False
            return answer.action == "accept"
        return False

    async def hand_back(question: str) -> bool:
        answers = params.input_responses or {}
        answer = answers.get(_NAME)
        if isinstance(answer, types.ElicitResult) and seals.breaks(params.request_state, question):
            return answer.action == "accept"
        request = types.ElicitRequestFormParams(message=question, requested_schema=_FORM)
        requests: dict[str, Any] = {_NAME: types.ElicitRequest(params=request)}
        if "roots" in answers:  # Only the newest answers come back, so ask for these again.
            requests["roots"] = types.ListRootsRequest()
        raise Unanswered(
            types.InputRequiredResult(input_requests=requests, request_state=seals.seal(question))
        )

    return ask if call.session.can_send_request else hand_back
