"""Ask the person behind the client a question, in both protocol eras.

Up to protocol 2025-11-25 the server sends the question and waits. In the 2026 protocol a server
cannot send requests: it returns the question as the call's result, and the client repeats the call
with the answer. The question carries a seal, which ties one answer to exactly this question and
this call: its tool, all of its arguments, and the turn that they come to. So a model cannot answer
in the arguments of a call, and an answer cannot serve another call.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError

from codex_tools.codex.record import Record
from codex_tools.tool import AskTimeout

logger = logging.getLogger(__name__)

Ask = Callable[[str, object], Awaitable[bool]]
"""Function that asks a question about a turn."""

OPEN_LIMIT = 1000
"""Maximum number of questions that wait for an answer; the oldest is then forgotten."""

ANSWER_WITHIN_S = 600.0
"""Maximum seconds that a call waits for the person's answer; less where the client ends calls
earlier."""

WAITING = "waiting for your answer"
"""What progress says while the person is asked."""

ANSWERS_ITSELF = ("codex-mcp-client",)
"""Clients that are never asked, because they may answer without a person.

`codex exec -s danger-full-access` accepts by itself (seen with 0.163.0), and this client does not
report whether a person is present.
"""

_FORM: types.ElicitRequestedSchema = {"type": "object", "properties": {}}
"""A form without fields: accepting it is the answer."""

_NAME = "allow"


class Unanswered(Exception):
    """Raised to return a question to the client, which repeats the call with the answer."""

    def __init__(self, result: types.InputRequiredResult) -> None:
        super().__init__("the person must be asked first")
        self.result = result


class Seals:
    """The seals of this server process; each is valid for one answer."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._open: dict[str, None] = {}

    def seal(self, matter: str) -> str:
        """Return a new seal for *matter*: the question, and all that the answer is good for."""
        number = secrets.token_hex(16)
        self._open[number] = None
        if len(self._open) > OPEN_LIMIT:
            del self._open[next(iter(self._open))]
        body = f"{number}.{self._sign(number, matter)}"
        return f"{body}.{self._sign('seal', body)}"

    def check(self, seal: str | None) -> None:
        """Refuse a call whose state is no seal of this server process.

        Raises:
            MCPError: The client altered the seal, or made it up.
        """
        if seal is None:
            return
        body, _, sign = seal.rpartition(".")
        if not self._is(sign, "seal", body):
            problem = "requestState is not as this server sent it; call again without it"
            raise MCPError(code=types.INVALID_PARAMS, message=problem)

    def belongs(self, seal: str | None, matter: str) -> bool:
        """Return True if *seal* belongs to *matter*, whether it was used before or not."""
        number, _, rest = (seal or "").partition(".")
        return self._is(rest.partition(".")[0], number, matter)

    def breaks(self, seal: str | None, matter: str) -> bool:
        """Use up a checked *seal*; return True if it belongs to *matter* and was unused."""
        number = (seal or "").partition(".")[0]
        if not self.belongs(seal, matter) or number not in self._open:
            return False
        del self._open[number]
        return True

    def _is(self, sign: str, number: str, matter: str) -> bool:
        wanted = self._sign(number, matter)
        return hmac.compare_digest(sign.encode("utf-8", "replace"), wanted.encode())

    def _sign(self, number: str, matter: str) -> str:
        data = f"{number}\n{matter}".encode("utf-8", "surrogatepass")
        return hmac.new(self._key, data, hashlib.sha256).hexdigest()


def can_ask(call: ServerRequestContext[Any, Any]) -> bool:
    """Return True if the client says that it can show a form to a person."""
    capabilities = call.session.client_capabilities
    offered = capabilities.elicitation if capabilities is not None else None
    client = call.session.client_params
    if client is not None and client.client_info.name in ANSWERS_ITSELF:
        return False
    # {} means forms.
    return offered is not None and (offered.form is not None or offered.url is None)


def find_asker(
    call: ServerRequestContext[Any, Any],
    params: types.CallToolRequestParams,
    request: Record,
    seals: Seals,
    *,
    report: Callable[[Callable[[], str]], None],
    within_s: float,
) -> Ask | None:
    """Return a function that asks the person, or None if the client does not support questions.

    In the 2026 protocol that function raises `Unanswered` if the call brings no answer yet.

    Args:
        call: The call that needs the answer.
        params: Its parameters.
        request: Its arguments, parsed.
        seals: The seals of this server process.
        report: Reports what the call is doing.
        within_s: Seconds to wait for the answer, less than the client allows a call.
    """
    within_s = min(within_s, ANSWER_WITHIN_S)
    if not can_ask(call):
        return None

    async def ask(question: str, _: object) -> bool:
        report(lambda: WAITING)
        with anyio.move_on_after(within_s):
            try:
                answer = await call.session.elicit_form(question, _FORM, call.request_id)
            except MCPError as error:
                logger.info("the client could not ask the person: %s", error)
                return False
            finally:
                report(lambda: "working")
            return answer.action == "accept"
        raise AskTimeout(within_s)

    async def hand_back(question: str, turn: object) -> bool:
        arguments = request.model_dump(mode="json")
        # The turn is a frozen value: its repr names each of its settings.
        parts = [params.name, arguments, repr(turn), question]
        matter = json.dumps(parts, sort_keys=True)
        answers = params.input_responses or {}
        answer = answers.get(_NAME)
        if isinstance(answer, types.ElicitResult) and seals.breaks(params.request_state, matter):
            return answer.action == "accept"
        form = types.ElicitRequestFormParams(message=question, requested_schema=_FORM)
        requests: dict[str, Any] = {_NAME: types.ElicitRequest(params=form)}
        if "roots" in answers:  # The client sends only the latest answers, so ask again.
            requests["roots"] = types.ListRootsRequest()
        raise Unanswered(
            types.InputRequiredResult(input_requests=requests, request_state=seals.seal(matter))
        )

    return ask if call.session.can_send_request else hand_back
