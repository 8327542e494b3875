"""Check the Ray cluster of a place: what it offers, and whether it demands its token."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

import anyio

from codex_tools.engines.process import open_child
from codex_tools.places.place import Place
from mcp_server_codex.cli.checks.check import Check, ok, warning

WITHIN_S = 60.0
"""Maximum seconds to connect. Ray 2.60 gives up after 20 s where a token is missing."""


async def check_ray(place: Place) -> list[Check]:
    """Check the cluster of *place*, whose worker has answered."""
    offered = await _examine(place, "with-token")
    found = [ok("ray", f"The Ray cluster of {place.name} offers {offered or 'nothing'} in all.")]
    if not await _examine(place, "without-token"):
        return [*found, ok("token", "The Ray cluster refuses a driver without its token.")]
    return [
        *found,
        warning(
            "token",
            "The Ray cluster demands no token: all that reach its port can run programs there, with"
            " the login of Codex.",
            f"Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH on each node, and token_file in the"
            f" table ray of [{place.name}]",
        ),
    ]


async def _examine(place: Place, how: Literal["with-token", "without-token"]) -> str:
    """Return what the cluster offers of what a run takes; "" if it lets nobody in."""
    command = list(place.command_to_examine(how))
    said = b""
    try:
        with anyio.fail_after(WITHIN_S):
            async with open_child(command, stdin=b"", cwd=Path("/"), env=os.environ) as child:
                async for piece in child.pieces():
                    said = (said + piece)[:10_000]
                if await child.wait() != 0:
                    return ""
        read = json.loads(said)
        return ", ".join(f"{name}: {amount:g}" for name, amount in read["offered"].items())
    except (TimeoutError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
