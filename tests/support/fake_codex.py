"""A fake Codex: a real child process that plays what a test tells it to."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from support.lab import Json

_FAKE = """\
#!{python} -I
import json, os, sys, time
plan = json.load(open({plan!r}))
if sys.argv[1:] == ["--version"]:
    print(plan["version_line"])
    sys.exit(0)
if "--help" in sys.argv:
    print(plan["help"])
    sys.exit(0)
seen = {{"argv": sys.argv, "cwd": os.getcwd(), "env": dict(os.environ)}}
seen["stdin"] = sys.stdin.buffer.read().decode("utf-8", "replace")
for word, following in zip(sys.argv, sys.argv[1:]):
    if word == "--output-schema":
        seen["schema_file"] = following
        seen["schema"] = json.load(open(following))
        seen["schema_mode"] = oct(os.stat(following).st_mode & 0o777)
json.dump(seen, open({seen!r}, "w"))
{body}
for path, stream in ((plan["stderr"], sys.stderr), (plan["stdout"], sys.stdout)):
    if path:
        stream.buffer.write(open(path, "rb").read())
        stream.flush()
sys.exit(plan["exit_code"])
"""


@dataclass
class FakeCodex:
    """A program that looks like Codex and plays what it is told to."""

    folder: Path
    version: str = "0.169.0"
    help: str = ""
    stdout: bytes | Path = b""
    stderr: bytes | Path = b""
    exit_code: int = 0
    body: str = ""
    """Python to run before the streams are played."""
    _seen: Path = field(init=False)

    def __post_init__(self) -> None:
        self._seen = self.folder / "seen.json"

    def build(self) -> Path:
        """Write the program; return its path."""
        self.folder.mkdir(parents=True, exist_ok=True)
        plan = {
            "version_line": f"codex-cli {self.version}",
            "help": self.help,
            "stdout": self._file("stdout", self.stdout),
            "stderr": self._file("stderr", self.stderr),
            "exit_code": self.exit_code,
        }
        (self.folder / "plan.json").write_text(json.dumps(plan))
        program = self.folder / "codex"
        program.write_text(
            _FAKE.format(
                python=sys.executable,
                plan=str(self.folder / "plan.json"),
                seen=str(self._seen),
                body=self.body,
            )
        )
        program.chmod(0o755)
        return program

    def seen(self) -> Json:
        """Return what its last run was given."""
        return cast("Json", json.loads(self._seen.read_text()))

    def forget(self) -> None:
        """Forget what earlier runs were given."""
        self._seen.unlink(missing_ok=True)

    @property
    def was_started(self) -> bool:
        return self._seen.exists()

    def _file(self, name: str, data: bytes | Path) -> str:
        if isinstance(data, Path):
            return str(data)
        path = self.folder / name
        path.write_bytes(data)
        return str(path)


def events(*lines: Json) -> bytes:
    """Return a stream of *lines* as Codex prints them."""
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def thread_line(thread_id: str = "01a20000-0000-7000-8000-000000000001") -> Json:
    return {"type": "thread.started", "thread_id": thread_id}


def answer_lines(text: str, **usage: int) -> Sequence[Json]:
    counts = {"input_tokens": 10, "cached_input_tokens": 4, "output_tokens": 2} | usage
    return (
        {"type": "turn.started"},
        {"type": "item.completed", "item": {"id": "item_0", "type": "agent_message", "text": text}},
        {"type": "turn.completed", "usage": counts},
    )


def wrapped_codex(folder: Path, codex: Path, body: str) -> Path:
    """Return a program that runs the real *codex* and does to its output what *body* says.

    *body* is Python: `lines()` yields what the real Codex prints, `put(line)` passes a line on,
    `ended(line)` is True for the end of a turn. `finish()` returns the exit code after that: an
    app-server must be told to end. Its answer to `--version` is passed on unchanged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "codex"
    program.write_text(_WRAPPER.format(python=sys.executable, codex=str(codex), body=body))
    program.chmod(0o755)
    return program


_WRAPPER = """\
#!{python} -I
import json, os, subprocess, sys, time
if not {{"exec", "app-server"}} & {{*sys.argv}}:
    os.execv({codex!r}, [{codex!r}, *sys.argv[1:]])
codex = subprocess.Popen([{codex!r}, *sys.argv[1:]], stdout=subprocess.PIPE)
def lines():
    yield from codex.stdout
def put(line):
    sys.stdout.buffer.write(line)
    sys.stdout.flush()
def ended(line):
    return b'"turn.completed"' in line or b'"turn/completed"' in line
def finish():
    if "app-server" in sys.argv:
        codex.terminate()
    return codex.wait()
{body}
"""
