# `make demo` and `make test` each make .venv from nothing but python3, make and a package index; `make lint` and
# `make test-all` are what a change passes beside them.
PYTHON ?= python3
# The pair that the suite was last run with; any torch>=2.9 serves: make test TORCH='torch torchvision'
TORCH ?= torch==2.14.1 torchvision==0.29.1
# Where Debian's package dataset-fashion-mnist puts its four files
FASHION ?= /usr/share/datasets/fashion-mnist
BIN := .venv/bin

.PHONY: install demo test test-all test-clusters lint format clean

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

demo: install
	$(BIN)/budgettune demo

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile

# What `make test` leaves out: what takes long, a browser, real images, minutes of breaking things. What is missing is skipped by name.
test-all: install
	$(BIN)/python -m pip install --quiet --editable '.[browser,http,parquet,pictures]' || echo 'no Playwright, schemathesis, pandas or kaleido: tests skipped'
	BUDGETTUNE_FASHION_MNIST=$(wildcard $(FASHION)) \
		$(BIN)/python -m pytest -m 'browser or chaos or slow or fashion or cuda' --durations=10

# What needs a cluster, started here: Slurm (as root), Ray and PgBouncer. What is missing is skipped by name.
test-clusters: install
	$(BIN)/python -m pip install --quiet --editable '.[clusters]' || echo 'no Ray or kubernetes-validate: tests skipped'
	$(BIN)/python -m pytest tests/docs/test_stack.py
	$(BIN)/python -m pytest -m 'slurm or ray or pgbouncer' --durations=10

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache
