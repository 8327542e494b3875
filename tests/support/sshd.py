"""A real sshd on loopback, for this user only, that ends with its test.

It is the one on PATH or in /usr/sbin, or the one that SSHD names, for example unpacked from the
package of Debian. As root, sshd wants a user of its own and a folder in /run: both are made in a
mount namespace, where all homes are empty: bash reads ~/.bashrc for ssh, and what a person has in
it may wait for something. Without sshd, its tests are skipped, in CI too: it has no package that a
test could install. CI fails if there is one that does not start for a plain user.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

_CONFIG = """\
ListenAddress {address}
Port {port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/client.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
"""

_CLIENT = """\
Host box
  HostName {address}
  Port {port}
  User {user}
  IdentityFile {folder}/client
  IdentitiesOnly yes
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""

_AS_ROOT = """\
sed 's,:[^:]*:[^:]*$,:{folder}:/bin/bash,' /etc/passwd > {folder}/passwd
grep -q ^sshd: {folder}/passwd || echo 'sshd:x:65533:65534::/run/sshd:/bin/false' >> {folder}/passwd
mount --bind {folder}/passwd /etc/passwd
mount -t tmpfs none /run
mkdir -p /run/sshd
exec {sshd} -D -e -f {folder}/sshd_config
"""


def path_with_ssh(folder: Path, config: Path) -> str:
    """Return a PATH whose `ssh` uses *config*, for programs that call it without; see `real_sshd`.

    The client reads the configuration of the user of this machine otherwise, wherever HOME is.
    """
    program = folder / "ssh-bin" / "ssh"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F "{config}" "$@"\n')
    program.chmod(0o755)
    return f"{program.parent}{os.pathsep}{os.environ['PATH']}"


@contextmanager
def real_sshd(
    folder: Path, address: str = "127.0.0.1", prefix: Sequence[str] = ()
) -> Generator[Path]:
    """Start sshd; yield the client's configuration, in which it is the host `box`.

    Args:
        folder: Where its files are written.
        address: The address to listen on.
        prefix: The beginning of its command line.
    """
    sshd = os.environ.get("SSHD") or shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")
    if sshd is None or shutil.which("ssh") is None:
        pytest.skip("there is no sshd: install openssh-server, or name one with SSHD")
    for name in ("host", "client"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    values = {"folder": folder, "port": port, "user": getpass.getuser(), "sshd": sshd}
    values["address"] = address
    (folder / "sshd_config").write_text(_CONFIG.format(**values))
    config = folder / "ssh_config"
    config.write_text(_CLIENT.format(**values))
    command = [sshd, "-D", "-e", "-f", str(folder / "sshd_config")]
    if os.geteuid() == 0:
        command = ["unshare", "-m", "sh", "-ec", _AS_ROOT.format(**values)]
    command = [*prefix, *command]
    with (folder / "sshd.log").open("wb") as log:
        server = subprocess.Popen(command, stderr=log, stdout=log, stdin=subprocess.DEVNULL)
    try:
        ask = ["ssh", "-F", str(config), "-o", "BatchMode=yes", "box", "true"]
        for _ in range(50):
            if subprocess.run(ask, capture_output=True, check=False).returncode == 0:
                break
            if server.poll() is not None:
                break
            time.sleep(0.1)
        else:
            server.kill()
        if server.poll() is not None:
            problem = f"sshd does not start here: {(folder / 'sshd.log').read_text()[-300:]}"
            if os.environ.get("CI") and os.geteuid() != 0:
                pytest.fail(problem)
            pytest.skip(problem)  # Perhaps no mount namespace can be made.
        yield config
    finally:
        server.kill()
        server.wait()
