"""A server whose own files are replaced or removed while it runs, as by an upgrade."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from codex_tools.engines.nesting import _is_guard as is_guard  # pyright: ignore[reportPrivateUsage]
from support.fake_codex import FakeCodex
from support.lab import (
    Lab,
)
from support.wire import HELLO, wire

TOP = Path(__file__).parents[2]


def installed(lab: Lab) -> tuple[list[str], Path]:
    """Install the server as an upgrade would find it; return its program, and its folder.

    The folder holds a virtual environment and the packages, to be replaced or removed.
    """
    folder = lab.root / "installed"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    for root in ("server", "tools"):
        for package in (TOP / root).glob("*/__init__.py"):
            shutil.copytree(package.parent, folder / "packages" / package.parent.name)
    paths = [str(folder / "packages"), *(path for path in sys.path if "site-packages" in path)]
    script = lab.root / "installed.py"
    script.write_text(
        f"import sys\nsys.path[:0] = {paths!r}\n"
        "from mcp_server_codex.__main__ import main\nmain()\n"
    )
    return [str(folder / "venv" / "bin" / "python"), str(script)], folder


def is_copied_guard(argv: list[str]) -> bool:
    """Return True if *argv* is that of a guard whose script was removed after its run."""
    return is_guard([part.encode() for part in argv]) and not Path(argv[3]).exists()


@pytest.mark.parametrize("what", ["replaced", "package removed", "all removed"])
async def test_a_server_whose_package_is_replaced_still_runs_codex(
    what: str, mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout = HELLO
    fake.body = "seen['above'] = open(f'/proc/{os.getppid()}/cmdline').read().split('\\0')\n"
    fake.body += "from pathlib import Path; Path(plan['stdout']).with_name('above').write_text("
    fake.body += "repr(seen['above']))"
    program, folder = installed(lab)
    async with wire(mode, lab, "--codex-bin", str(fake.build()), program=program) as client:
        await client.open()
        assert await client.lists_tools()
        guard = folder / "packages" / "codex_tools" / "engines" / "guard.py"
        if what == "replaced":
            guard.write_text("raise SystemExit('of another version')\n")
            shutil.rmtree(guard.parent / "__pycache__")
        else:
            shutil.rmtree(folder if what == "all removed" else folder / "packages")
        for _ in range(2):
            answer = await client.ask(client.call("codex_run", prompt="x"))
            assert "result" in answer, lab.log.read_text()
            run = answer["result"]["structuredContent"]
            assert run["status"] == "completed", run
        argv = ast.literal_eval((fake.folder / "above").read_text())
        assert is_copied_guard(argv)
        assert await client.hang_up() == 0


async def test_a_server_whose_interpreter_is_gone_asks_to_be_restarted(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    (_, script), _ = installed(lab)
    python = lab.root / "python"
    python.symlink_to(getattr(sys, "_base_executable", sys.executable))
    async with wire(mode, lab, "--codex-bin", str(fake.build()), program=[str(python), script]) as (
        client
    ):
        await client.open()
        python.unlink()
        answer = await client.ask(client.call("codex_run", prompt="x"))
    error = answer["result"]["structuredContent"]["error"]
    assert error["kind"] == "internal"
    assert "replaced or removed" in error["message"]
    assert error["hint"].startswith("Restart this server")
    assert not fake.was_started


async def test_a_module_that_is_gone_is_told_as_such(mode: str, lab: Lab, fake: FakeCodex) -> None:
    """The server imports the check of schemas when the first one comes."""
    program = lab.root / "gone.py"
    program.write_text(
        "import sys\nfrom mcp_server_codex.__main__ import main\n"
        "class Gone:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0].startswith('jsonschema'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Gone())\nmain()\n"
    )
    command = [sys.executable, str(program)]
    async with wire(mode, lab, "--codex-bin", str(fake.build()), program=command) as client:
        await client.open()
        schema = {"type": "object", "properties": {"a": {"type": "string"}}}
        call = client.call("codex_run", prompt="x", output_schema=schema)
        answer = await client.ask(call)
    error = answer["result"]["structuredContent"]["error"]
    assert "module jsonschema" in error["message"]
    assert error["hint"].startswith("Restart this server")
