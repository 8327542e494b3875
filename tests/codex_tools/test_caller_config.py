"""Less power is free, by key and by value; more is not."""

from __future__ import annotations

from typing import Any

import pytest

from codex_tools.caller_config import only_narrows, split_config

LESS: tuple[tuple[str, Any], ...] = (
    ("features.apps", False),
    ("features.web_search_request", False),
    ("apps.calendar.enabled", False),
    ("apps._default.enabled", False),
    ("tools.view_image", False),
    ("approval_policy", "never"),
    ("sandbox_workspace_write.network_access", False),
    ("sandbox_workspace_write.exclude_slash_tmp", True),
    ("sandbox_workspace_write.writable_roots", []),
    ("shell_environment_policy.inherit", "none"),
    ("notify", []),
)

MORE: tuple[tuple[str, Any], ...] = (
    ("features.apps", True),
    ("features.apps", 0),
    ("features.hooks", False),
    ("features.plugins", False),
    ("features.use_linux_sandbox_bwrap", False),
    ("features", {}),
    ("apps.calendar.enabled", True),
    ("approval_policy", "on-request"),
    ("sandbox_workspace_write.network_access", True),
    ("sandbox_workspace_write.exclude_slash_tmp", False),
    ("sandbox_workspace_write.exclude_slash_tmp", 1),
    ("sandbox_workspace_write.writable_roots", ["/"]),
    ("shell_environment_policy.inherit", "all"),
    ("shell_environment_policy.exclude", []),
    ("notify", ["x"]),
    ("notify", {}),
    ("mcp_servers.x.command", "y"),
)


@pytest.mark.parametrize(("key", "value"), LESS)
def test_what_takes_away_is_free(key: str, value: Any) -> None:
    assert only_narrows(key, value)


@pytest.mark.parametrize(("key", "value"), MORE)
def test_what_may_add_is_not(key: str, value: Any) -> None:
    assert not only_narrows(key, value)


def test_what_codex_would_ignore_is_taken_out_and_the_rest_is_left() -> None:
    found = split_config(
        {
            "mcp_servers": {},
            "mcp_servers.a.enabled": False,
            "mcp_servers.b.enabled": True,
            "sandbox_mode": "read-only",
            "web_search": "live",
        }
    )
    assert found.others == {"mcp_servers.b.enabled": True, "web_search": "live"}
    assert (found.sandbox, found.servers_off, found.all_servers_off) == ("read-only", {"a"}, True)
    wide: dict[str, Any] = {"mcp_servers": {"a": {}}, "sandbox_mode": "workspace-write"}
    assert split_config(wide).others == wide
