# Everything runs in .venv, from packages that requirements.lock names with their hashes.
PYTHON ?= python3
VENV := .venv
# Packages are compiled once; a machine that forbids it compiles them anew for every chapter.
unexport PYTHONDONTWRITEBYTECODE
BIN := $(VENV)/bin
READY := $(VENV)/.ready
UV_VERSION := 0.13.9
COMPILE := $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command "make lock"

.DEFAULT_GOAL := help
.PHONY: help setup book serve pdf test test-all check colab-check bench browser lock clean repository
.DELETE_ON_ERROR:

help:
	@echo "make book    set everything up, execute what has changed, build the pages in _build/html"
	@echo "make serve   show the built book at http://localhost:8000"
	@echo "make pdf     the book to print, in _build/book.pdf"
	@echo "make check   formatting, types, imports and the quick tests: what to run before a commit"
	@echo "make test    the tests, two chapters and a small book in a real browser among them"
	@echo "make test-all    all tests: the whole book is built and read in a browser, too"
	@echo "make colab-check    every chapter as Colab meets it, in an environment without the library"
	@echo "make bench   measure what the library costs against its peers (ONLY='loss reranking' for some parts)"
	@echo "make setup   only set up .venv (PYTHON=python3.12 for another Python than python3)"
	@echo "make repository URL=https://github.com/OWNER/NAME    the book moves there: badges, links, addresses"
	@echo "make lock    write the lock files anew, with the newest versions that pyproject.toml admits"
	@echo "make clean   remove the built pages; runs, records and .venv stay"

setup: $(READY)

$(READY): requirements.lock requirements-bootstrap.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else \
	    "$(PYTHON) is Python %d.%d: the book needs 3.11, 3.12 or 3.13 (make PYTHON=python3.12)" % sys.version_info[:2])'
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || \
	    { rm -rf $(VENV); echo "$(PYTHON) -m venv failed: on Debian, apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bootstrap.txt
	$(BIN)/uv pip install --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation -e .
	@# What would otherwise be compiled in the middle of a chapter.
	@$(BIN)/python -m glbook.precompile
	@touch $@

book: setup
	@$(BIN)/glbook book

serve: setup
	@$(BIN)/glbook serve

pdf: setup browser
	@$(BIN)/glbook pdf

# Files of tests run side by side, each on one thread: the tests are small, and threads that share a core wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(PYTEST) -m "not slow and not book"

test: setup browser
	$(PYTEST) -m "not book and not thorough"

test-all: setup browser
	$(BIN)/glbook book
	$(PYTEST)

colab-check: setup
	COLAB_ALL=1 $(BIN)/python -m pytest tests/test_colab.py

# Threads that wait without spinning, as `glbook` has them.
bench: setup
	OMP_WAIT_POLICY=passive $(BIN)/python -m benchmarks $(ONLY)

# CHROMIUM=/path/to/a/browser names one that is somewhere else.
export CHROMIUM
browser:
	@for name in "$(CHROMIUM)" chromium chromium-browser google-chrome google-chrome-stable; do \
	    if [ -n "$$name" ] && command -v "$$name" > /dev/null; then exit 0; fi; \
	done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; \
	else \
	    echo "Tests and printing need Chromium: apt-get install chromium, or make ... CHROMIUM=/path/to/chrome" >&2; exit 1; \
	fi

lock: setup
	$(COMPILE) pyproject.toml --all-extras --group dev --upgrade --quiet -o requirements.lock
	echo "uv==$(UV_VERSION)" | $(COMPILE) - --no-annotate --quiet -o requirements-bootstrap.txt

# The address stands in _config.yml; badges, links and installs name it too, and the address of the pages follows from it.
repository:
	@case "$(URL)" in https://github.com/*/*) ;; *) \
	    echo "make repository URL=https://github.com/OWNER/NAME: URL is '$(URL)'" >&2; exit 1 ;; esac
	@old=$$(sed -n 's|^  url: https://github.com/||p' _config.yml); new=$$(echo "$(URL)" | sed 's|^https://github.com/||; s|/*$$||'); \
	pages() { echo "$${1%%/*}.github.io/$${1##*/}"; }; \
	for pair in "$$old $$new" "$$(pages $$old) $$(pages $$new)"; do \
	    from=$${pair%% *} to=$${pair##* }; \
	    git grep -lzIF "$$from" | FROM="$$from" TO="$$to" xargs -0 perl -pi -e 's/(?<![\w.-])\Q$$ENV{FROM}\E/$$ENV{TO}/g'; \
	done; git diff --stat

clean:
	rm -rf _build/book _build/book.pdf _build/html _build/jupyter-book* _build/screenshots
