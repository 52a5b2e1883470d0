# Two commands do everything: `make demo` and `make test`. Needs make, Python >= 3.11 and its venv module
# (Debian, Ubuntu: apt install make python3-venv). Everything goes into ./.venv; nothing is installed system-wide.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
export ORT_DISABLE_TELEMETRY := 1
# What pytest made of a file of tests, and compiled modules, are kept for the next process, whatever the shell says.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo demo-tpm gramine test coverage check lint fuzz bench bench-quick bench-report docs vectors evidence lock clean

demo: $(VENV)/demo.stamp
	$(BIN)/strongroom demo

demo-tpm: $(VENV)/tpm.stamp
	$(BIN)/python tools/demo_tpm.py

test: $(VENV)/tpm.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/suite.py -n 2 --dist loadfile --no-loadscope-reorder

# The whole suite once more with every line and branch counted, which takes twice the time.
coverage: $(VENV)/tpm.stamp
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term

check: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/suite.py -m "not slow" -q

fuzz: $(VENV)/test.stamp
	$(BIN)/python fuzz/run.py --minutes 30

bench: $(VENV)/test.stamp
	$(BIN)/python bench/attest.py

# The folder and manifest of an SGX enclave (deploy/gramine); KEY=FILE signs where Gramine is installed.
gramine: $(VENV)/demo.stamp
	$(BIN)/python tools/gramine.py $(if $(KEY),--key $(KEY))

# Ours, bare onnxruntime and the paper's Flask stack side by side: under two minutes once everything is installed.
bench-quick: $(VENV)/bench.stamp
	$(BIN)/strongroom bench quick --out build/bench-quick

# Every measurement into build/bench-report/report.html; for a quiet machine (an hour and more). PEERS says against whom.
PEERS ?= flask,triton,mlserver,litserve,kserve,bentoml,tract
bench-report: $(VENV)/bench.stamp
	$(BIN)/strongroom bench all --against $(PEERS) --out build/bench-report

docs: $(VENV)/test.stamp
	$(BIN)/python tools/docs.py

vectors: $(VENV)/test.stamp
	$(BIN)/python tests/vectors/generate.py

# Fetches the public samples of genuine evidence (or takes STRONGROOM_EVIDENCE=DIR) and appraises each.
evidence: $(VENV)/test.stamp
	$(BIN)/python tools/evidence.py

lock:
	$(PYTHON) tools/lock.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Strongroom needs Python 3.11 or newer; say which with: make PYTHON=python3.12 ...")'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "Python's venv module is missing (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: requirements.lock pyproject.toml | $(VENV)/bin/python
	@echo "Installing pinned dependencies into $(VENV) (about 130 MB to download the first time)"
	@sed '/^# --- development/,$$d' requirements.lock > $(VENV)/demo.txt
	$(PIP) install -q --require-hashes --no-deps --only-binary :all: -r $(VENV)/demo.txt
	$(PIP) install -q --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/test.stamp: $(VENV)/demo.stamp
	@sed '/^# --- a server on a TPM/,$$d' requirements.lock > $(VENV)/test.txt
	$(PIP) install -q --require-hashes --no-deps --only-binary :all: -r $(VENV)/test.txt
	$(PIP) install -q --no-deps --no-build-isolation -e ./bench
	@touch $@

$(VENV)/bench.stamp: $(VENV)/demo.stamp
	@sed "1,/^# --- the benchmarks' charts/d" requirements.lock > $(VENV)/bench.txt
	$(PIP) install -q --require-hashes --no-deps --only-binary :all: -r $(VENV)/bench.txt
	$(PIP) install -q --no-deps --no-build-isolation -e ./bench
	@touch $@

# tpm2-pytss has no wheels: it is built against libtss2 where that is installed, and otherwise what needs it is skipped.
$(VENV)/tpm.stamp: $(VENV)/test.stamp
	@sed "1,/^# --- a server on a TPM/d; /^# --- the benchmarks' charts/,\$$d" requirements.lock > $(VENV)/tpm.txt
	@if pkg-config --exists tss2-esys tss2-fapi tss2-mu 2>/dev/null; then \
	    echo "Building tpm2-pytss against libtss2 (about a minute, once)"; \
	    sed '/^tpm2-pytss/,/^[a-z]/{/^tpm2-pytss/d;/^    /d}' $(VENV)/tpm.txt > $(VENV)/tpm-tools.txt; \
	    $(PIP) install -q --require-hashes --no-deps --only-binary :all: -r $(VENV)/tpm-tools.txt && \
	    $(PIP) install -q --require-hashes --no-deps --no-build-isolation -r $(VENV)/tpm.txt; \
	else \
	    echo "libtss2 is not installed (apt install libtss2-dev libtss2-tcti-swtpm0 pkg-config): no TPM here"; \
	fi
	@touch $@
