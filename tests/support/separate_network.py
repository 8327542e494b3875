"""Networks of their own for processes, joined to this one or to each other by links to cut."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

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
    _skip_without_right()
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


@contextmanager
def joined_networks(count: int) -> Generator[list[Network]]:
    """Make up to five network namespaces that reach each other; skip the test where one cannot."""
    _skip_without_right()
    number = os.getpid() % 8192
    bridge = f"mcpb{os.getpid()}"
    base = f"198.19.{number // 32}"
    made = [
        Network(f"mcp{os.getpid()}n{each}", f"{base}.{number % 32 * 8 + each}", "")
        for each in range(1, count + 1)
    ]
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("link", "set", bridge, "up")
        for each in made:
            _ip("netns", "add", each.name)
            link = ("type", "veth", "peer", "name", "there", "netns", each.name)
            _ip("link", "add", each.name, *link)
            _ip("link", "set", each.name, "master", bridge, "up")
            _ip("-n", each.name, "addr", "add", f"{each.address}/29", "dev", "there")
            _ip("-n", each.name, "link", "set", "there", "up")
            _ip("-n", each.name, "link", "set", "lo", "up")
        yield made
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces can be joined here: {error.stderr}")
    finally:
        for each in made:
            _remove(each.name)
        subprocess.run(["ip", "link", "del", bridge], check=False, capture_output=True)


@contextmanager
def loopback_shared(network: Network, port: int) -> Generator[None]:
    """Let processes in *network* reach a port of this machine's loopback at the same port."""
    made: list[socket.socket] = []

    def listen() -> None:  # In a thread of its own, which enters the namespace for good.
        with Path("/run/netns", network.name).open("rb") as file:
            assert ctypes.CDLL(None).setns(file.fileno(), 0) == 0
        made.append(socket.create_server(("127.0.0.1", port), backlog=128))

    entering = threading.Thread(target=listen)
    entering.start()
    entering.join()
    (listener,) = made

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def join(near: socket.socket) -> None:
        with near, socket.create_connection(("127.0.0.1", port)) as far:
            back = threading.Thread(target=pass_on, args=(far, near), daemon=True)
            back.start()
            pass_on(near, far)
            back.join()

    def serve() -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                threading.Thread(target=join, args=(near,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _skip_without_right() -> None:
    if shutil.which("ip") is None:
        pytest.skip("there is no ip: install iproute2")
    if os.geteuid() != 0:
        pytest.skip("only root can make a network namespace that others reach")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def _remove(name: str) -> None:
    """Delete the namespace and with it the link."""
    for words in (("link", "del", name), ("netns", "del", name)):
        subprocess.run(["ip", *words], check=False, capture_output=True)
