"""Check a turn that comes from another machine against this machine's own limits.

The server has judged the turn already. The stricter of both holds.
"""

from __future__ import annotations

import tomllib
from dataclasses import replace

from codex_tools.codex.errors import NotAllowed
from codex_tools.engines.engine import TurnRequest
from codex_tools.policy import Policy
from codex_tools.turn_options import TurnOptions


def narrow_turn(policy: Policy, request: TurnRequest) -> TurnRequest:
    """Return *request* within the limits of *policy*; accesses the disk.

    Raises:
        NotAllowed: The turn asks for more than this machine allows to callers elsewhere.
    """
    config: dict[str, object] = {}
    for key, text in request.config:
        try:
            config[key] = tomllib.loads(f"value = {text}")["value"]
        except (tomllib.TOMLDecodeError, KeyError):
            raise NotAllowed(f"config key {key[:100]}", "it is no TOML", "--allow-config") from None
    asked = {
        "prompt": request.prompt,
        "cwd": str(request.cwd),
        "sandbox": request.sandbox,
        "isolation": "none",
        "model": request.model,
        "reasoning_effort": request.reasoning_effort,
        "profile": request.profile,
        "web_search": request.web_search,
        "config": config or None,
        "timeout_s": min(request.timeout_s, policy.max_timeout_s),
    }
    options = TurnOptions.model_validate(asked)
    # The copy is in the worker's own state folder, in which no caller here may work.
    own = replace(policy, roots=(request.cwd, *request.add_dirs))
    turn = own.check(
        options, request.program, default_cwd=request.cwd, depth=max(0, request.depth - 1)
    )
    if turn.excesses:
        raise turn.excesses[0]
    own.check_program(request)
    checked = turn.request
    return replace(
        request,
        timeout_s=checked.timeout_s,
        stall_s=min(request.stall_s, checked.stall_s),
        web_search=checked.web_search,
        config=checked.config,
        keep_rules=request.keep_rules and checked.keep_rules,
        project_files=checked.project_files,
    )
