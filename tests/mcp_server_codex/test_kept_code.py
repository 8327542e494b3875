"""The code of the start serves the whole life of a server."""

from __future__ import annotations

import json
import os
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest

STATES = ("compiled", "not compiled", "compiled from an earlier source")


def project(folder: Path, state: str) -> Path:
    """Make a package `kept` with modules that import each other; return its folder."""
    package = folder / "kept"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner" / "__init__.py").write_text("")
    late = package / "inner" / "late.py"
    late.write_text("from kept.word import WORD\n")
    (package / "word.py").write_text("WORD = 'earlier'\n")
    if state != "not compiled":
        for file in package.rglob("*.py"):
            py_compile.compile(str(file))
    if state == "compiled from an earlier source":
        (package / "word.py").write_text("WORD = 'of the start'\n")
    return package


def run(folder: Path, *lines: str) -> str:
    """Run *lines* in a process that has kept the code of `kept`."""
    start = (
        "import json, shutil, sys",
        "from pathlib import Path",
        "from mcp_server_codex import kept_code",
        "kept_code.PACKAGES = ('kept',)",
        "kept_code.keep_code()",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join((*start, *lines))],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(folder)},
    )
    return done.stdout.strip()


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("then", ["removed", "replaced", "left"])
def test_a_module_is_imported_as_it_was_at_the_start(tmp_path: Path, state: str, then: str) -> None:
    package = project(tmp_path, state)
    change = {
        "removed": f"shutil.rmtree({str(package)!r})",
        "replaced": f"Path({str(package / 'word.py')!r}).write_text('raise SystemExit(9)')",
        "left": "",
    }
    words = (
        "from kept.inner import late",
        "print(json.dumps([late.WORD, late.__file__, late.__package__]))",
    )
    found = json.loads(run(tmp_path, change[then], *words))
    word = "of the start" if state == "compiled from an earlier source" else "earlier"
    assert found == [word, str(package / "inner" / "late.py"), "kept.inner"]
    if then == "removed":
        assert not package.exists()


def test_compiled_code_is_written_for_the_source_that_it_is_of(tmp_path: Path) -> None:
    package = project(tmp_path, "not compiled")
    run(tmp_path, "import kept.word")
    assert {file.name.partition(".")[0] for file in package.rglob("*.pyc")} == {"__init__", "word"}
    other = project(tmp_path / "other", "not compiled")
    change = f"Path({str(other / 'word.py')!r}).write_text('WORD = 1')"
    run(tmp_path / "other", change, "import kept.word")
    assert [file.name.partition(".")[0] for file in other.rglob("*.pyc")] == ["__init__"]


def test_what_is_no_folder_is_left_to_its_own_finder(tmp_path: Path) -> None:
    project(tmp_path, "not compiled")
    archive = tmp_path / "kept.zip"
    subprocess.run(
        [sys.executable, "-m", "zipfile", "-c", str(archive), str(tmp_path / "kept")], check=True
    )
    assert run(archive, "import kept.word", "print(kept.word.WORD)") == "earlier"
