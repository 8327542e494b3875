# make demo: see it work. make test: all tests, several at a time; make test ARGS="-k x": some of
# them, one by one; make quick: those without a real Codex; make live: those with the real Codex
# and real clients. Everything they need goes into .venv.
PY := .venv/bin/python
# Tests wait for other processes more than they work: two at a time for each of two processors.
SIDE_BY_SIDE := -n 4 --dist loadscope --no-loadscope-reorder
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
# The tests that start no real Codex, except one that shows how rich lays out a table.
QUICK := tests/codex_tools tests/mcp_server_codex
NO_CODEX := not test_demo and not 0.60.1 and not 0.163.0 \
  and (not test_doctor or a_person_gets_a_line)
# Measured in the processes that run the tests, where tests/codex_tools takes 30 % more CPU time
# (1.27 and 1.35 times, paired): under 2 % of all tests. Servers that tests start are not measured.
MEASURED := --cov=codex_tools --cov-report=
HANGING := test_nothing_that_hangs_keeps_a_server_and_its_runs_alive
# Tests of minutes that no version of a dependency changes.
LONG := --ignore tests/codex_tools/history --ignore tests/mcp_server_codex/test_ssh_place.py \
  --deselect tests/codex_tools/codex/test_clean_text.py \
  --deselect tests/codex_tools/codex/test_masking.py --ignore tests/codex_tools/worktree \
  --deselect tests/mcp_server_codex/test_server_end.py::$(HANGING)
# What a bundle for Claude Desktop holds, where it goes, and its official packer.
BUNDLED := manifest.json icon.png pyproject.toml README.md LICENSE server tools
DIST := dist
# The version of Ray that tools/codex_tools/places/ray_place.py was written for.
RAY := 2.60.0
MCPB := npx --yes @anthropic-ai/mcpb@2.1.2

.PHONY: demo demo-places test quick lowest live check bundle bench bench-places ray compat \
  conformance clients comparison kills recording docs format clean
.DEFAULT_GOAL := test

demo: .venv/ready
	@.venv/bin/mcp-server-codex demo

# Runs at two other places on this machine, with a real Codex and a scripted model.
demo-places: .venv/ready
	@PYTHONPATH=tests $(PY) tests/demo_places.py

test: .venv/ready
	@$(PY) -m pytest $(or $(ARGS),$(SIDE_BY_SIDE) $(MEASURED))
ifndef ARGS
	@echo "coverage: $$($(PY) -m coverage report --format=total) % of the lines of" \
	  "tools/codex_tools, without the servers that tests start"
endif

quick: .venv/ready
	@$(PY) -m pytest $(QUICK) -k '$(NO_CODEX)' $(or $(ARGS),$(SIDE_BY_SIDE))

# The same tests, without the longest and in the newer era of the protocol only, on the lowest
# version of each dependency that pyproject.toml allows.
lowest: .venv-lowest/ready
	@.venv-lowest/bin/python -m pytest $(QUICK) $(LONG) \
	  -k '$(NO_CODEX) and not legacy' $(or $(ARGS),$(SIDE_BY_SIDE))

live: .venv/ready
	@$(PY) -m pytest tests/live $(or $(ARGS),$(SIDE_BY_SIDE))

check: .venv/ready
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/pyright

bench: .venv/ready
	@$(PY) tests/bench/bench.py $(ARGS)

# What the pipe to another place costs; through Ray too if RAY_PYTHON names one.
bench-places: .venv/ready
	@$(PY) tests/bench/bench.py --only places $(ARGS)

# The tests of places on a Ray cluster: 300 MB of packages, in an environment of their own.
ray: .venv/ready .venv-ray/ready
	@RAY_PYTHON=$(or $(RAY_PYTHON),$(CURDIR)/.venv-ray/bin/python) $(PY) -m pytest tests/ray $(ARGS)

# The tests that meet a real Codex, on one version after the other: half an hour and 3 GB.
compat: .venv/ready
	@$(PY) tests/compat.py $(ARGS)

# The official conformance suite of MCP, over HTTP: two minutes.
conformance: .venv/ready
	@PYTHONPATH=tests $(PY) tests/conformance.py

# Real clients without an account: their table in docs/clients.md. Fetches 3 GB once.
clients: .venv/ready
	@PYTHONPATH=tests $(PY) tests/clients.py $(ARGS)

# The tables of docs/comparison.md. Fetches other servers from npm and PyPI once.
comparison: .venv/ready
	@PYTHONPATH=tests $(PY) tests/bench/comparison.py $(ARGS)

# The table of the kill matrix in README.md.
kills: .venv/ready
	@PYTHONPATH=tests $(PY) tests/kills.py

# The picture of the demo in README.md.
recording: .venv/ready
	@$(PY) docs/recording.py

# The parts of the README and docs/ that follow from the code.
docs: .venv/ready
	@PYTHONPATH=tests $(PY) docs/generate.py

# The extension for Claude Desktop.
bundle:
	@rm -rf '$(DIST)/bundle' && mkdir -p '$(DIST)/bundle'
	@tar -cf - --exclude=__pycache__ $(BUNDLED) | tar -xf - -C '$(DIST)/bundle'
	@$(MCPB) pack '$(DIST)/bundle' '$(DIST)/mcp-server-codex-$(VERSION).mcpb'
	@rm -rf '$(DIST)/bundle'

format: .venv/ready
	@.venv/bin/ruff check --fix -q . && .venv/bin/ruff format -q .

clean:
	@rm -rf .venv .venv-lowest .venv-ray .coverage .pytest_cache .ruff_cache .hypothesis dist

# uv where there is one, else venv and pip (25.1 or later knows dependency groups).
.venv/ready: pyproject.toml
	@if command -v uv >/dev/null 2>&1; then \
	  uv sync --quiet --all-extras --group dev --no-default-groups --refresh-package mcp-server-codex; \
	else \
	  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "Python 3.11 or later is needed (python3 is `python3 -V`)"; exit 1; }; \
	  python3 -m venv .venv \
	  && $(PY) -m pip install --quiet --disable-pip-version-check 'pip>=25.1' \
	  && $(PY) -m pip install --quiet --disable-pip-version-check -e '.[otel]' --group dev; \
	fi
	@touch $@

.venv-ray/ready: .venv/ready
ifndef RAY_PYTHON
	@$(PY) -m venv --clear .venv-ray
	@.venv-ray/bin/python -m pip install --quiet --disable-pip-version-check 'ray==$(RAY)'
else
	@mkdir -p .venv-ray
endif
	@touch $@

.venv-lowest/ready: pyproject.toml .venv/ready
	@$(PY) -m venv --clear .venv-lowest
	@grep -oE '[a-z0-9-]+>=[0-9.]+' pyproject.toml | sed 's/>=/==/' > .venv-lowest/lowest.txt
	@.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	@.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint .venv-lowest/lowest.txt -e '.[otel]' --group dev
	@touch $@
