"""A network of its own for a process, joined to this one by a link that can be cut."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Network:
    """A network namespace."""

    name: str
    address: str
    """Its address, as seen from here."""
    here: str
    """The address of this machine, as seen from there."""

    @property
    def prefix(self) -> tuple[str, ...]:
        """The beginning of a command line that runs in the namespace."""
        return ("ip", "netns", "exec", self.name)

    def cut(self) -> None:
        """Cut the link; no end hears of it, as when a cable is pulled somewhere between them."""
        _ip("link", "set", self.name, "down")

    def restore(self) -> None:
        """Join the link again."""
        _ip("link", "set", self.name, "up")


@contextmanager
def separate_network() -> Generator[Network]:
    """Make a network namespace; skip the test where that is not possible."""
    if shutil.which("ip") is None:
        pytest.skip("there is no ip: install iproute2")
    if os.geteuid() != 0:
        pytest.skip("only root can make a network namespace that others reach")
    number = os.getpid() % 16384
    name = f"mcp{os.getpid()}"
    # 198.18.0.0/15 is for tests of networks. Each test process takes four addresses of it.
    base = f"198.18.{number // 64}"
    here, there = (f"{base}.{number % 64 * 4 + each}" for each in (1, 2))
    try:
        _ip("netns", "add", name)
        _ip("link", "add", name, "type", "veth", "peer", "name", "there", "netns", name)
        _ip("addr", "add", f"{here}/30", "dev", name)
        _ip("link", "set", name, "up")
        _ip("-n", name, "addr", "add", f"{there}/30", "dev", "there")
        _ip("-n", name, "link", "set", "there", "up")
        _ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        _remove(name)
        pytest.skip(f"no network namespace can be made here: {error.stderr.strip()}")
    try:
        yield Network(name, there, here)
    finally:
        _remove(name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def _remove(name: str) -> None:
    """Delete the namespace and with it the link."""
    for words in (("link", "del", name), ("netns", "del", name)):
        subprocess.run(["ip", *words], check=False, capture_output=True)
