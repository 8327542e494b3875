"""The doctor finds the problem of each broken setup and names the fix."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from codex_tools.codex.json_object import Json
from mcp_server_codex.cli import doctor
from mcp_server_codex.cli.checks.check import Check
from support.codex_versions import PINNED, cannot_have, real_codex
from support.fake_codex import FakeCodex
from support.lab import BY_EXEC, Lab, marked, server_program

NEWEST = PINNED[1]


@dataclass
class Setup:
    """A machine with nothing on it but what the test puts there."""

    root: Path
    env: dict[str, str] = field(default_factory=dict[str, str])
    tag: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        for folder in (self.bin, self.home, self.cwd):
            folder.mkdir()
        # What Codex's shell needs, and git; neither node nor Codex.
        for name in ("sh", "bash", "git", "cat"):
            (self.bin / name).symlink_to(str(shutil.which(name)))
        self.env = {
            "PATH": str(self.bin),
            "HOME": str(self.root),
            "CODEX_HOME": str(self.home),
            "MCP_SERVER_CODEX_STATE_DIR": str(self.state),
            "LANG": "C.UTF-8",
            "DOCTOR_TEST_TAG": self.tag,
            "CODEX_API_KEY": "planted-key-of-the-environment",
        }

    @property
    def bin(self) -> Path:
        return self.root / "bin"

    @property
    def home(self) -> Path:
        return self.root / "codex-home"

    @property
    def cwd(self) -> Path:
        return self.root / "project"

    @property
    def state(self) -> Path:
        return self.root / "state"

    def install(self, version: str = NEWEST) -> Path:
        """Put the real Codex on PATH."""
        (self.bin / "codex").symlink_to(real_codex(version))
        return self.bin / "codex"

    def write_codex(self, script: str, mode: int = 0o755) -> Path:
        """Put a shell script in Codex's place."""
        program = self.bin / "codex"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(mode)
        return program

    def config(self, text: str) -> None:
        (self.home / "config.toml").write_text(text)

    def run(self, *options: str, command: tuple[str, ...] = ()) -> Diagnosis:
        done = subprocess.run(
            [*(command or (server_program(),)), "doctor", "--json", *options],
            env=self.env,
            cwd=self.cwd,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=150,
        )
        assert done.stdout, done.stderr
        assert marked(self.tag) == []
        return Diagnosis(done.returncode, json.loads(done.stdout), done.stdout + done.stderr)


@dataclass
class Diagnosis:
    """The output of the doctor."""

    exit_code: int
    whole: Json
    text: str

    def of(self, name: str) -> Json:
        found = [check for check in self.whole["checks"] if check["name"] == name]
        worst = [check for check in found if check["status"] != "ok"] or found
        assert worst, (name, self.text)
        return worst[0]

    def names(self, status: str) -> list[str]:
        return [check["name"] for check in self.whole["checks"] if check["status"] == status]

    def expect_problem(self, name: str, message: str, cure: str) -> None:
        """Check that this finding is a problem, and that there is no other problem."""
        check = self.of(name)
        assert check["status"] == "problem", self.text
        assert message in check["message"], self.text
        assert cure in check["cure"], self.text
        assert set(self.names("problem")) == {name}, self.text
        assert (self.exit_code, self.whole["status"]) == (1, "problem")

    def expect_warning(self, name: str, message: str, cure: str) -> None:
        """Check that this finding is a warning, and that there is no problem."""
        check = self.of(name)
        assert check["status"] == "warning", self.text
        assert message in check["message"], self.text
        assert cure in check["cure"], self.text
        assert self.names("problem") == [], self.text
        assert (self.exit_code, self.whole["status"]) == (0, "warning")


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


# Setups without a problem.


def test_a_set_up_that_works_has_no_problem(setup: Setup, version: str, lab: Lab) -> None:
    setup.install(version)
    del setup.env["CODEX_API_KEY"]
    setup.config((lab.home / "config.toml").read_text())
    subprocess.run(["git", "init", "-q"], cwd=setup.cwd, check=True)
    found = setup.run()
    assert (found.names("problem"), found.exit_code) == ([], 0), found.text
    for name, words in {
        "codex": f"Codex {version}, {setup.bin / 'codex'} (from PATH)",
        "config": f"Codex accepts {setup.home / 'config.toml'}",
        "login": "needs no OpenAI login",
        "git": f"in the repository {setup.cwd}",
        "sandbox": "in its own folder and only there",
        "state_dir": "can be written",
        "protocol": "MCP 2026-07-28 and 2025-11-25",
        "turn": "a command, a patch, no process left",
    }.items():
        assert found.of(name)["status"] == "ok", found.text
        assert words in found.of(name)["message"]
    assert all(check["cure"] is None for check in found.whole["checks"] if check["status"] == "ok")
    # The doctor changed none of the person's files; only the index in the state folder is new.
    assert sorted(path.name for path in (setup.home / "sessions").glob("*")) == []
    assert sorted(path.name for path in setup.cwd.iterdir()) == [".git"]
    assert setup.state.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("terminal", [False, True])
def test_a_person_gets_a_line_for_each_check_and_the_cure(setup: Setup, terminal: bool) -> None:
    setup.install()
    del setup.env["CODEX_API_KEY"]
    setup.env |= {"COLUMNS": "100"} | ({"FORCE_COLOR": "1"} if terminal else {})
    done = subprocess.run(
        [server_program(), "doctor"], env=setup.env, cwd=setup.cwd, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert ("\x1b[32mok" in done.stdout) is terminal
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    lines = [line.split() for line in plain.splitlines()]
    for name in ("system", "python", "settings", "codex", "sandbox", "protocol", "turn"):
        assert ["ok", name] in [line[:2] for line in lines], plain
    assert "problem  login      Codex is not logged in." in plain
    assert "→ codex login\n" in plain
    assert plain.splitlines()[-1].endswith(("1 warning.", "2 warnings."))


def test_a_cure_in_words_is_wrapped_and_a_command_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = "/home/dev/" + "long/" * 12 + "codex login"
    words = "Check proxy, VPN, firewall, DNS, and custom CA configuration, then try again."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORCE_COLOR", "1")
        patch.setenv("COLUMNS", "60")
        for cure in (command, words):
            doctor._show(Check("login", "problem", "Codex is not logged in.", cure))  # pyright: ignore
    plain = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert f"{'':20}→ {command}\n" in plain
    wrapped = plain.partition("→ Check")[2]
    assert all(len(line) <= 60 for line in wrapped.splitlines())
    assert " ".join(f"Check{wrapped}".split()) == words


def test_help_says_what_it_does(setup: Setup) -> None:
    done = subprocess.run(
        [server_program(), "doctor", "--help"], env=setup.env, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "--json" in done.stdout


# The Codex program.


def test_no_codex(setup: Setup) -> None:
    # Isolated from the package that the tests have installed.
    setup.env["CODEX_BIN"] = str(setup.root / "gone")
    found = setup.run()
    message = f"CODEX_BIN names {setup.root / 'gone'}, but there is no such program"
    found.expect_problem("codex", message, "npm install -g @openai/codex")
    assert found.of("protocol")["status"] == "ok", "the server itself works all the same"
    assert {*found.names("skipped")} == {"sandbox", "turn"}


def test_codex_that_is_not_executable(setup: Setup) -> None:
    program = setup.write_codex("exit 0", mode=0o644)
    found = setup.run("--codex-bin", str(program))
    message = f"--codex-bin names {program}, which is not executable"
    found.expect_problem("codex", message, f"chmod +x {program}")


def npm_package(setup: Setup, *, native: bool) -> Path:
    """Lay out npm's package of Codex, as `npm install -g` does."""
    package = setup.root / "lib" / "node_modules" / "@openai" / "codex"
    (package / "bin").mkdir(parents=True)
    script = package / "bin" / "codex.js"
    script.write_text("#!/usr/bin/env node\nthrow new Error('Missing optional dependency')\n")
    script.chmod(0o755)
    (setup.bin / "codex").symlink_to(script)
    if native:
        triple = real_codex("0.60.1").parents[1].name
        place = package / "vendor" / triple / "codex"
        place.mkdir(parents=True)
        (place / "codex").symlink_to(real_codex("0.60.1"))
    return script


def test_npm_s_script_without_node_and_without_the_binary(setup: Setup) -> None:
    npm_package(setup, native=False)
    cure = "npm install -g --include=optional @openai/codex"
    setup.run().expect_problem("codex", "which needs node", cure)


def test_npm_s_script_with_node_but_without_the_binary(setup: Setup) -> None:
    npm_package(setup, native=False)
    for name in ("node", "env"):
        (setup.bin / name).symlink_to(str(shutil.which(name)))
    cure = "npm install -g --include=optional @openai/codex"
    found = setup.run()
    found.expect_problem("codex", "answered --version with exit code", cure)
    assert "Missing optional dependency" in found.of("codex")["message"]


def test_npm_s_script_needs_no_node_where_the_binary_is(setup: Setup) -> None:
    npm_package(setup, native=True)
    found = setup.run()
    assert found.exit_code == 0, found.text
    assert (
        "is a script that starts this program; the server does not need it"
        in found.of("codex")["message"]
    )


def test_codex_that_is_too_old(setup: Setup, fake: FakeCodex) -> None:
    fake.version = "0.50.0"
    found = setup.run("--codex-bin", str(fake.build()))
    found.expect_problem("codex", "0.50.0", "npm install -g @openai/codex@latest")


def test_codex_that_is_newer_than_any_tested(setup: Setup, fake: FakeCodex) -> None:
    fake.version = "9.1.0"
    check = setup.run("--codex-bin", str(fake.build())).of("codex")
    assert (check["status"], check["details"]["version"]) == ("warning", "9.1.0")
    assert "This server was tested with Codex up to" in check["message"]


def test_codex_that_hangs_is_ended_with_all_that_it_started(setup: Setup) -> None:
    setup.write_codex("sleep 600 &\nsleep 600")
    (setup.bin / "sleep").symlink_to(str(shutil.which("sleep")))
    began = time.monotonic()
    found = setup.run()
    message = "did not answer --version within 20 s and 2,000 lines"
    found.expect_problem("codex", message, "npm install -g @openai/codex")
    assert time.monotonic() - began < 60


def test_codex_that_hangs_later_on(setup: Setup) -> None:
    script = 'case "$*" in --version) echo codex-cli 0.163.0;; login*) sleep 600;; esac'
    setup.write_codex(script)
    (setup.bin / "sleep").symlink_to(str(shutil.which("sleep")))
    check = setup.run().of("config")
    assert check["status"] == "problem"
    assert "did not answer `login status` within 20 s" in check["message"]


def test_codex_that_crashes(setup: Setup) -> None:
    setup.write_codex("echo 'out of luck' >&2; kill -SEGV $$")
    found = setup.run()
    found.expect_problem("codex", "killed by signal 11", "npm install -g @openai/codex")
    assert "out of luck" in found.of("codex")["message"]


def test_a_program_that_is_not_codex(setup: Setup) -> None:
    setup.write_codex("echo hello")
    found = setup.run()
    found.expect_problem("codex", "does not answer --version as Codex does", "npm install")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_program_cannot_control_the_terminal(setup: Setup, terminal: bool) -> None:
    evil = r"\033]0;owned\007\033[2J\302\233 2J\342\200\256[/x][bold]\nok       codex forged"
    setup.write_codex(f"printf '{evil}'; printf '{evil}' >&2; exit 3")
    folder = setup.cwd / "\x1b[2J\x9b\u202e[bold]"
    folder.mkdir()
    setup.env |= {"FORCE_COLOR": "1"} if terminal else {}
    done = subprocess.run(
        [server_program(), "doctor"], env=setup.env, cwd=folder, capture_output=True, text=True
    )
    shown = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    assert shown.replace("\n", "").isprintable()
    assert "[bold]" in shown
    assert not re.search(r"^ok +codex forged", shown, re.MULTILINE)
    as_json = subprocess.run(
        [server_program(), "doctor", "--json"],
        env=setup.env,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert as_json.stdout.replace("\n", "").isprintable()
    assert json.loads(as_json.stdout)["status"] == "problem"


def test_a_path_that_depends_on_the_folder(setup: Setup) -> None:
    codex = setup.install()
    found = setup.run("--codex-bin", "../bin/codex")
    assert found.of("codex")["status"] == "warning"
    assert f"{setup.cwd}/../bin/codex" in found.of("codex")["cure"], codex


def test_several_on_path_are_listed(setup: Setup) -> None:
    setup.install()
    other = setup.root / "other"
    other.mkdir()
    (other / "codex").symlink_to(real_codex("0.60.1"))
    setup.env["PATH"] += f"{os.pathsep}{other}"
    check = setup.run().of("codex")
    assert check["status"] == "ok"
    assert (
        f"2 of them: {setup.bin / 'codex'}, {other / 'codex'}. The first is used"
        in check["message"]
    )


# Codex's folder, configuration and login.


@pytest.mark.parametrize("below", ["", "/below"])
def test_codex_home_that_cannot_be_a_folder(setup: Setup, below: str) -> None:
    setup.install()
    file = setup.root / "file"
    file.touch()
    setup.env["CODEX_HOME"] = f"{file}{below}"
    found = setup.run()
    found.expect_problem("codex_home", f"{file} is a file", f"mv {file}")
    assert found.of("turn")["status"] == "ok", "Codex itself is well"


def test_codex_home_that_is_not_there(setup: Setup) -> None:
    setup.install()
    setup.env["CODEX_HOME"] = str(setup.root / "no such home")
    cure = f"mkdir -p '{setup.root / 'no such home'}'"
    setup.run().expect_problem("codex_home", "does not exist", cure)


def test_a_login_that_others_may_read(setup: Setup) -> None:
    setup.install()
    login = setup.home / "auth.json"
    login.write_text('{"OPENAI_API_KEY": "sk-planted-0123456789"}')
    login.chmod(0o644)
    found = setup.run()
    found.expect_warning("codex_home", "Other users can read", f"chmod 600 {login}")
    assert found.of("login")["message"] == "Codex is logged in with an API key."
    assert "planted" not in found.text


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ('model = "x"\n[broken\n', 2, "unclosed table"),
        ('\nmodel = 3\nsandbox_mode = "read-only"\n', 2, "invalid type"),
        ('# ours\nsandbox_mode = "bogus"\n', 2, "unknown variant"),
        ('model = "x"\nmodel_provider = "nope"\n', 2, "nope"),
    ],
)
def test_a_configuration_that_codex_refuses(
    setup: Setup, version: str, text: str, line: int, reason: str
) -> None:
    setup.install(version)
    setup.config(text)
    place = f"{setup.home / 'config.toml'}:{line}"
    found = setup.run()
    found.expect_problem("config", place, f"Correct {place}")
    assert reason in found.of("config")["message"]


def test_a_configuration_that_is_not_toml_is_seen_without_codex(setup: Setup) -> None:
    setup.env["CODEX_BIN"] = str(setup.root / "gone")
    setup.config('model = "x"\nmodel = "y"\n[[\n')
    found = setup.run()
    assert set(found.names("problem")) == {"codex", "config"}
    assert f"{setup.home / 'config.toml'}:2" in found.of("config")["cure"]


def test_no_login(setup: Setup, version: str) -> None:
    setup.install(version)
    del setup.env["CODEX_API_KEY"]
    setup.run().expect_problem("login", "not logged in", "codex login")


def test_a_key_in_the_environment_is_a_login(setup: Setup) -> None:
    setup.install()
    found = setup.run()
    assert found.of("login")["status"] == "ok"
    assert "CODEX_API_KEY" in found.of("login")["message"]
    assert "planted" not in found.text


def test_a_provider_s_key_that_is_not_set(setup: Setup) -> None:
    setup.install()
    del setup.env["CODEX_API_KEY"]
    setup.config(
        'model_provider = "mine"\n[model_providers.mine]\nname = "mine"\n'
        'base_url = "http://127.0.0.1:9/v1"\nenv_key = "MY_PROVIDER_KEY"\n'
    )
    setup.run().expect_warning("login", "MY_PROVIDER_KEY, which is not set", '"MY_PROVIDER_KEY"')


@pytest.mark.parametrize("ill_typed", [False, True])
def test_secrets_are_never_shown(setup: Setup, version: str, ill_typed: bool) -> None:
    setup.install(version)
    setup.config(
        'model_provider = "mine"\n[model_providers.mine]\nname = "mine"\n'
        'base_url = "http://127.0.0.1:9/planted-url"\nenv_key = "MY_PROVIDER_KEY"\n'
        + ('http_headers = "planted header"\n' if ill_typed else "")
        + 'experimental_bearer_token = "planted-bearer"\n'
        '[mcp_servers.other]\ncommand = "planted-command"\n'
        'env = { OTHER_PASSWORD = "planted-other" }\n'
    )
    setup.env |= {
        "MY_PROVIDER_KEY": "planted-provider-key",
        "ANTHROPIC_API_KEY": "planted-anthropic",
        "OPENAI_API_KEY": "sk-planted-0123456789abcdef",
    }
    (setup.home / "auth.json").write_text('{"OPENAI_API_KEY": "sk-planted-of-auth-0123456789"}')
    found = setup.run()
    assert found.exit_code == (1 if ill_typed else 0), found.text
    assert "planted" not in found.text, found.text


def test_secrets_that_codex_shows_are_masked(setup: Setup) -> None:
    setup.config('[mcp_servers.other]\ncommand = "x"\nenv = { PASSWORD = "planted-of-config" }\n')
    setup.env["MY_PROVIDER_KEY"] = "planted-of-environment"
    setup.write_codex('echo "planted-of-config and $MY_PROVIDER_KEY" >&2; exit 3')
    found = setup.run()
    assert "[secret] and [secret]" in found.of("codex")["message"]
    assert "planted" not in found.text


# The machine.


def test_git_that_is_missing(setup: Setup) -> None:
    setup.install()
    (setup.bin / "git").unlink()
    found = setup.run()
    found.expect_warning("git", "git is not on PATH", "install git")
    assert found.of("turn")["status"] == "ok"


def test_a_sandbox_that_does_not_work(setup: Setup, version: str) -> None:
    setup.write_codex(
        '[ "$1" = sandbox ] && { echo "bwrap: setting up uid map: Permission denied" >&2; exit 1; }'
        f'\nexec {real_codex(version)} "$@"'
    )
    found = setup.run()
    found.expect_problem("sandbox", "does not work here", "sandbox")
    assert "uid map: Permission denied" in found.of("sandbox")["message"]
    unsandboxed = setup.run(
        *("--default-sandbox", "danger-full-access", "--max-sandbox", "danger-full-access")
    )
    unsandboxed.expect_warning("sandbox", "Runs do not use it by default", "sandbox")


def test_a_system_that_allows_no_sandbox(setup: Setup) -> None:
    # In a user namespace of its own, in which no further one may be made.
    script = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    enter = ("/usr/bin/unshare", "-r", "/bin/sh", "-c", script, "sh")
    if not Path(enter[0]).exists() or subprocess.run([*enter, "/bin/true"]).returncode:
        cannot_have("a user namespace")
    setup.install()
    check = setup.run(command=(*enter, server_program())).of("sandbox")
    assert check["status"] == "problem"
    assert "bwrap" in check["message"]
    assert check["cure"].startswith("sudo sysctl -w user.max_user_namespaces=")


def test_a_sandbox_that_does_not_hold(setup: Setup) -> None:
    setup.write_codex(
        '[ "$1" = sandbox ] && { while [ "$1" != /bin/sh ]; do shift; done; exec "$@"; }'
        f'\nexec {real_codex(NEWEST)} "$@"'
    )
    setup.run().expect_problem("sandbox", "wrote outside", "sandbox")


@pytest.mark.parametrize("below", ["", "/below"])
def test_a_state_folder_that_is_a_file(setup: Setup, below: str) -> None:
    setup.install()
    setup.state.touch()
    setup.env["MCP_SERVER_CODEX_STATE_DIR"] = f"{setup.state}{below}"
    found = setup.run()
    assert found.exit_code == 1
    check = found.of("state_dir")
    assert check["status"] == "problem"
    assert f"cannot write its state folder {setup.state}" in check["message"]
    assert "--state-dir DIR" in check["cure"]


def test_a_state_folder_that_others_may_read(setup: Setup) -> None:
    setup.install()
    setup.state.mkdir(mode=0o755)
    cure = f"chmod 700 {setup.state}"
    setup.run().expect_warning("state_dir", "other users have access to the folder", cure)


def test_a_damaged_index_is_rebuilt_and_no_problem(setup: Setup) -> None:
    setup.install()
    setup.run()
    (index,) = (setup.state / "history").glob("*.sqlite")
    index.write_bytes(b"this was a database once " * 1000)
    found = setup.run()
    assert found.exit_code == 0, found.text
    assert f"the index {index.name} is damaged" in found.of("state_dir")["message"]
    assert found.of("protocol")["status"] == "ok"
    assert "is damaged" not in setup.run().of("state_dir")["message"]


# Python and the settings.


def hostile_package(folder: Path, name: str) -> Path:
    package = folder / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"raise SystemExit('the wrong {name}')\n")
    return package / "__init__.py"


CLEAN = '"env": {"PYTHONPATH": "", "PYTHONSAFEPATH": "1"}'


def test_a_pythonpath_with_a_package_of_the_name_of_ours(setup: Setup) -> None:
    setup.install()
    files = [hostile_package(setup.root / "libs", name) for name in ("mcp", "orjson", "rich")]
    setup.env["PYTHONPATH"] = str(setup.root / "libs")
    found = setup.run()
    found.expect_problem("python", f"PYTHONPATH ({setup.root / 'libs'})", CLEAN)
    for file in files:
        assert f"is loaded from {file}" in found.of("python")["message"]
    assert found.of("turn")["status"] == "ok", "the rest is looked at all the same"


def test_a_current_folder_with_a_package_of_the_name_of_ours(setup: Setup) -> None:
    setup.install()
    file = hostile_package(setup.cwd, "mcp")
    module = (sys.executable, "-m", "mcp_server_codex")
    found = setup.run(command=module)
    found.expect_problem("python", f"mcp is loaded from {file}", CLEAN)
    # The console script, and the documented settings, keep it out.
    assert setup.run().exit_code == 0
    setup.env["PYTHONSAFEPATH"] = "1"
    assert setup.run(command=module).exit_code == 0


def test_folders_named_as_ours_are_no_problem(setup: Setup) -> None:
    setup.install()
    for name in ("tools", "server", "tests", "test", "codex", "events"):
        hostile_package(setup.cwd, name)
    setup.env["PYTHONPATH"] = str(setup.cwd)
    found = setup.run()
    assert (found.names("problem"), found.exit_code) == ([], 0), found.text


def test_a_setting_in_the_environment_that_makes_no_sense(setup: Setup) -> None:
    setup.install()
    setup.env |= {"MCP_SERVER_CODEX_MAX_RUNS": "zero", "MCP_SERVER_CODEX_ROOT": "/no/such"}
    found = setup.run()
    found.expect_problem("settings", "MCP_SERVER_CODEX_", "unset MCP_SERVER_CODEX_")
    messages = [check["message"] for check in found.whole["checks"] if check["name"] == "settings"]
    assert len(messages) == 2
    assert any("MCP_SERVER_CODEX_MAX_RUNS" in each for each in messages)
    assert any("/no/such is not a folder" in each for each in messages)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--max-runs", "0"), "--max-runs: must be at least 1"),
        (("--no-such", "thing"), "unknown argument: --no-such"),
        (("--wait-s",), "--wait-s"),
        (("--max-sandbox", "read-only", "--default-sandbox", "workspace-write"), "wider"),
    ],
)
def test_an_option_that_makes_no_sense(setup: Setup, options: tuple[str, ...], says: str) -> None:
    setup.env["CODEX_BIN"] = str(setup.root / "gone")
    found = setup.run(*options)
    assert found.of("settings")["status"] == "problem"
    assert says in found.of("settings")["message"]
    assert found.of("protocol")["status"] == "ok"


def test_a_current_folder_that_is_gone(setup: Setup) -> None:
    setup.env["CODEX_BIN"] = str(setup.root / "gone")
    script = '/bin/rmdir "$PWD" && exec "$@"'
    found = setup.run(command=("/bin/sh", "-c", script, "sh", server_program()))
    assert set(found.names("problem")) == {"system", "codex"}
    assert found.of("system")["cure"] == "cd ~"
    assert found.of("protocol")["status"] == "ok"


def test_a_configuration_that_is_a_pipe_holds_nothing_up(setup: Setup) -> None:
    setup.install()
    os.mkfifo(setup.home / "config.toml")
    found = setup.run()
    found.expect_problem("config", "is not a regular file", f"mv {setup.home / 'config.toml'}")
    assert found.of("turn")["status"] == "ok"


def test_inside_a_run_it_says_so(setup: Setup) -> None:
    setup.install()
    setup.env["CODEX_RUN_DEPTH"] = "1"
    found = setup.run()
    assert (
        "inside 1 run of this server, and --max-depth is 1: here codex_run is refused"
        in found.of("nesting")["message"]
    )
    assert found.of("turn")["status"] == "ok"


# The clients.


def cursor(setup: Setup, command: str, **entry: Any) -> Path:
    """Write an entry for this server into Cursor's configuration."""
    file = setup.root / ".cursor" / "mcp.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"mcpServers": {"mine": {"command": command} | entry}}))
    return file


def test_a_client_that_starts_the_server(setup: Setup) -> None:
    setup.install()
    file = cursor(setup, server_program(), args=["--max-runs", "2"])
    check = setup.run().of("clients")
    assert check["status"] == "ok"
    assert f"Cursor has this server as mine in {file}" in check["message"]
    assert "leave --wait-s at auto" in check["message"]


def test_a_client_without_the_server(setup: Setup) -> None:
    setup.install()
    (setup.root / ".cursor").mkdir()
    setup.run().expect_warning("clients", "Cursor", "mcp-server-codex install cursor")


def test_a_client_s_program_that_is_gone(setup: Setup) -> None:
    setup.install()
    command = str(setup.root / "old" / "mcp-server-codex")
    file = cursor(setup, command)
    found = setup.run()
    message = f"its program {command} was not found"
    found.expect_problem("clients", message, "mcp-server-codex install cursor")
    assert str(file) in found.of("clients")["message"]


@pytest.mark.parametrize(
    "entry", [{"args": ["--max-runs", "zero"]}, {"env": {"MCP_SERVER_CODEX_MAX_RUNS": "zero"}}]
)
def test_a_client_s_options_that_make_no_sense(setup: Setup, entry: Json) -> None:
    setup.install()
    file = cursor(setup, server_program(), **entry)
    found = setup.run()
    found.expect_problem("clients", "with its options the server does not start", f"Correct {file}")


def test_a_client_s_entry_that_is_switched_off(setup: Setup) -> None:
    setup.install()
    file = cursor(setup, server_program(), disabled=True)
    setup.run().expect_warning("clients", "the entry is disabled", f"or in {file}")


def test_a_client_s_file_that_is_broken(setup: Setup) -> None:
    setup.install()
    file = cursor(setup, server_program())
    file.write_text('{"mcpServers": {\n"mine": \n')
    setup.run().expect_warning("clients", "cannot be read: line", f"Correct {file}")


def test_with_a_broken_configuration_of_codex_all_clients_are_found(setup: Setup) -> None:
    setup.install()
    (setup.root / ".cursor").mkdir()
    del setup.env["CODEX_HOME"]
    (setup.root / ".codex").mkdir()
    (setup.root / ".codex" / "config.toml").write_text("model = [\n")
    found = setup.run()
    assert found.names("problem") == ["config"]
    assert "Clients on this machine: Cursor, Codex." in found.of("clients")["message"]


def enable_plugin(setup: Setup, name: str, *commands: str, enabled: bool = True) -> None:
    """Write what Claude Code 2.1.332 writes when it installs a plugin."""
    folder = setup.root / ".claude" / "plugins"
    place = folder / "cache" / name / "1.0.0"
    (place / "commands").mkdir(parents=True)
    for command in commands:
        (place / "commands" / f"{command}.md").write_text("x")
    entry = {"scope": "user", "installPath": str(place), "version": "1.0.0"}
    file, settings = folder / "installed_plugins.json", setup.root / ".claude" / "settings.json"
    installed: Json = json.loads(file.read_text())["plugins"] if file.exists() else {}
    switches: Json = json.loads(settings.read_text())["enabledPlugins"] if settings.exists() else {}
    file.write_text(json.dumps({"version": 2, "plugins": installed | {name: [entry]}}))
    settings.write_text(json.dumps({"enabledPlugins": switches | {name: enabled}}))


OWN = "mcp-server-codex@mcp-server-codex"


def test_a_plugin_with_the_same_command_names(setup: Setup) -> None:
    setup.install()
    enable_plugin(setup, OWN, "run", "review", "status")
    enable_plugin(setup, "codex@openai-codex", "review", "status", "rescue")
    found = setup.run()
    found.expect_warning("plugins", "same names as this server's plugin: review, status", "/mcp-")
    assert "codex@openai-codex" in found.of("plugins")["message"]


def test_a_plugin_that_does_not_clash_is_no_matter(setup: Setup) -> None:
    setup.install()
    enable_plugin(setup, OWN, "run", "review")
    enable_plugin(setup, "other@market", "rescue")
    enable_plugin(setup, "off@market", "review", enabled=False)
    found = setup.run()
    assert found.of("plugins")["status"] == "ok"
    # The plugin brings the server along: Claude Code is no client without it.
    assert found.of("clients")["status"] == "ok"


def test_the_plugin_and_an_entry_list_the_tools_twice(setup: Setup) -> None:
    setup.install()
    enable_plugin(setup, OWN, "run")
    entry = {"mcpServers": {"codex": {"command": server_program()}}}
    (setup.cwd / ".mcp.json").write_text(json.dumps(entry))
    setup.run().expect_warning("plugins", "twice", "uninstall claude-code")


def test_it_says_where_all_is_kept(setup: Setup) -> None:
    setup.install()
    check = setup.run().of("folders")
    assert check["details"]["audit log"] == str(setup.state / "audit.jsonl")
    assert check["details"]["threads"] == str(setup.home / "sessions")
    assert str(setup.state) in check["message"]


# Interrupting the doctor.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["while it starts", "--version", "exec", "app-server"])
def test_a_signal_leaves_nothing_running(setup: Setup, where: str, number: signal.Signals) -> None:
    setup.write_codex(
        f'for word; do [ "$word" = "{where}" ] && {{ sleep 601 & sleep 602; }}; done'
        f'\nexec {real_codex(NEWEST)} "$@"'
    )
    (setup.bin / "sleep").symlink_to(str(shutil.which("sleep")))
    with subprocess.Popen(
        [server_program(), "doctor", *(BY_EXEC if where == "exec" else ())],
        env=setup.env,
        cwd=setup.cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as doctor:
        deadline = time.monotonic() + 60
        # The first process that the doctor starts is a guard, which must not be left behind.
        while not (
            len(marked(setup.tag)) > 1
            if where == "while it starts"
            else is_running(setup.tag, "602")
        ):
            assert time.monotonic() < deadline
            assert doctor.poll() is None
            time.sleep(0 if where == "while it starts" else 0.05)
        doctor.send_signal(number)
        try:
            output, _ = doctor.communicate(timeout=60)
        finally:
            doctor.kill()
    assert doctor.returncode == 128 + number, output
    assert b"Traceback" not in output
    while left := marked(setup.tag):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def is_running(tag: str, argument: str) -> bool:
    for pid in marked(tag):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if argument.encode() in words:
            return True
    return False
