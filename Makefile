# Needs Python 3.11 to 3.14, of the releases in constraints.txt, and nothing else; name another with `make demo PYTHON=python3.12`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

demo: .venv/.installed
	$(BIN)/outcrop demo

# Bytecode is kept, whatever the environment says: the tests start many processes, and these
# compute on a thread each: there are as many as cores. A lost one ends the tests: with files
# kept together, xdist waits for ever for what its successor was to do.
test: .venv/.installed-test
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/pytest -n 3 --dist loadfile --max-worker-restart 0

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15) and "constraints.txt is for Python 3.11 to 3.14, and $(PYTHON) is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/pip
	$(BIN)/python -m pip install -c constraints.txt -e .
	@touch $@

.venv/.installed-test: pyproject.toml constraints.txt | .venv/bin/pip
	$(BIN)/python -m pip install --no-compile -c constraints.txt -e '.[test]'
	@touch $@ .venv/.installed
