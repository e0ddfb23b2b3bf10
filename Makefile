# Two commands do everything on a fresh machine: `make validate` and `make test`.
# Both set up .venv first; the second time that costs nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: validate test quick lint clean help

help:
	@echo "make validate   the main job on the embedded fixtures; ends with a report to open"
	@echo "make test       lint, types and all tests"
	@echo "make quick      the fast lane of tests: those marked unit"
	@echo "make lint       ruff and mypy"
	@echo "make clean      remove .venv, runs and caches"

validate: $(READY)
	@$(BIN)/validate run

# Two processes: most tests take one core. A file stays in one of them where its tests share what they sampled
# (conftest.py).
test: lint
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile --validate-profile quick \
	  --validate-checkpoint fixtures/checkpoints/helios-tiny --validate-replays 0

quick: $(READY)
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile -m unit

lint: $(READY)
	@$(BIN)/ruff check -q .
	@$(BIN)/ruff format -q --check .
	@$(BIN)/mypy --no-error-summary

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) (a minute or two the first time)"
	@# torch first: pinned, it decides what everything else resolves to.
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch triton
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,models]'
	@# Tests judge Liger's kernels. All that it requires is torch and triton, which are there.
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps liger-kernel
	@touch $@

clean:
	@rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache build *.egg-info
