# The verbs stay the same for ever: setup, demo, test, check, sim, chaos, bench, docs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test check sim chaos bench docs compat cassandra clean
.DEFAULT_GOAL := help

help:
	@echo "make help    this list"
	@echo "make setup   create .venv with everything in it"
	@echo "make demo    a research agent that survives kill -9 of its worker, its leader and its region (LOG=cassandra)"
	@echo "make test    every suite: the fast ones, then short forms of those with real processes"
	@echo "make check   format, lint, import directions, types"
	@echo "make sim     whole regions, and Raft and membership alone, over fresh seeds (SEEDS=200; 5000: the long form)"
	@echo "make chaos   kill the server under load and judge what it acknowledged (KILLS=200); REGION=1: a region"
	@echo "make bench   benchmarks; prints the table of docs/performance.md; REGION=1: of a region"
	@echo "make docs    regenerate the pages that are made from the code"
	@echo "make cassandra  the log between regions on two real Cassandra nodes that die in turn, and what it costs"
	@echo "make compat  Temporal's own sdk-python tests, other SDKs and the temporal CLI against this server; REGION=3: a region"

setup: $(STAMP)

demo: $(STAMP)
	@$(BIN)/holdfast demo --log $(or $(LOG),embedded)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("holdfast needs Python 3.11 or newer; set PYTHON=... to one") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing holdfast and its tools into $(VENV) (about a minute the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(STAMP)

check: $(STAMP)
	$(BIN)/ruff format --check -q .
	$(BIN)/ruff check -q .
	$(BIN)/lint-imports
	$(BIN)/mypy

# The first run is fast and in parallel; the second starts real processes, kills them, and wants them alone. What
# failed of those that use real sockets or processes, and only of those, is run once more and named in any case: on a
# machine that stood still for a second they fail and nothing is wrong. All others fail at once (tests/conftest.py).
FAST := -m "not live" --timeout 300 -q -rfEs
LIVE := -m live --timeout 600 -q -rfEs --ignore tests/compat/sdks \
    --ignore tests/replication/log/cassandra/test_outage.py
ONCE_MORE = { test $$? -eq 1 && echo "==== once more, what failed (the first failure is above; look at it)" && \
    $(BIN)/python -m pytest $(1) --last-failed --once-more; }
test: export SIM_BASE_SEED ?= $(shell date +%s)

test: $(STAMP)
	$(BIN)/python -m pytest $(FAST) --cache-clear -n 2 --dist=worksteal --durations=5 || $(call ONCE_MORE,$(FAST))
	$(BIN)/python -m pytest $(LIVE) --cache-clear --durations=5 || $(call ONCE_MORE,$(LIVE))

docs: $(STAMP)
	$(BIN)/python -m docs.generate.rpcs
	$(BIN)/python -m docs.generate.configuration
	$(BIN)/python -m pytest tests/docs -q

sim: $(STAMP)
	$(BIN)/python -m chaos.sim.run --seeds $(or $(SEEDS),200)
	$(BIN)/python -m pytest tests/sim -n 2 -q -rf --seeds=$(or $(SEEDS),200)
	$(BIN)/python -m pytest tests -k simulation --ignore tests/sim -n 2 -q -rf --seeds=$(or $(SEEDS),200)

chaos: $(STAMP)
	$(BIN)/python -m $(if $(REGION),chaos.live.region --kills $(or $(KILLS),10),chaos.live.kill --kills $(or $(KILLS),200))

bench: $(STAMP)
	$(BIN)/python -m $(if $(REGION),benchmarks.region,benchmarks.run)

compat: $(STAMP)
	$(BIN)/python -m tests.compat.run $(if $(REGION),--region $(REGION))
	$(if $(REGION),,$(BIN)/python -m pytest tests/compat/sdks -q -rfEs)

cassandra: $(STAMP)
	$(BIN)/python -m pytest tests/replication/log/cassandra --seeds 1 --timeout 600 -q -rfEs --durations=5
	$(BIN)/python -m tests.replication.log.cassandra.measure

clean:
	rm -rf $(VENV) build
