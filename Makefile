# vmbusirq: `make run` shows the main job, `make test` runs every test; both set up what they need in .venv.

PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
CHECKED := $(VENV)/.check-installed
CSRC    := $(shell find csrc -name '*.[ch]') csrc/build_core.py
ifeq ($(origin CC),default)
CC      := gcc
endif
# setuptools says of the ext-modules table that it is experimental, each time; that is known
PIP_INSTALL = PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check

C_CORE  := $(shell find csrc -name '*.c' -not -path 'csrc/bench/*')
C_TESTS := $(basename $(notdir $(wildcard tests/c/test_*.c)))
C_TEST_HEADERS := $(wildcard tests/c/*.h)
C_FLAGS := -std=c11 -g -Icsrc -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Werror
C_LIBS  := -lpthread
SOAK_FLAGS := 100000000

.DEFAULT_GOAL := build
.PHONY: run test build bench check ctest asan tsan soak golden clean help valgrind

run: build ## boot the default scenario and print /proc/interrupts
	@$(BIN)/vmbusirq run

test: build ## all tests, under 3 minutes
	@$(BIN)/python -m pytest -q

build: $(STAMP) ## .venv with the package and its command in it

bench: build ## the benchmarks: demux hot path, ring, rendering, SynIC, explorer
	@for what in demux ring render synic explore; do $(BIN)/vmbusirq bench $$what || exit 1; done

check: $(CHECKED) ctest ## format, lint, types, C warnings as errors, import directions
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_layers.py tests/test_tidy.py

ctest: build/c/warnings $(C_TESTS:%=build/c/plain/%) ## the C programs of tests/c, plain
	@for t in $(C_TESTS); do build/c/plain/$$t || exit 1; done

asan: $(C_TESTS:%=build/c/asan/%) ## the C programs under the address and undefined-behaviour sanitizers
	@for t in $(C_TESTS); do build/c/asan/$$t || exit 1; done

tsan: $(C_TESTS:%=build/c/tsan/%) ## the C programs under the thread sanitizer
	@for t in $(C_TESTS); do build/c/tsan/$$t || exit 1; done

soak: build valgrind $(C_TESTS:%=build/c/plain/%) ## long campaigns: 10^8 flags and packets across threads, 10000 cycles of hot plug
	@build/c/plain/test_stress $(SOAK_FLAGS)
	@build/c/plain/test_ring $(SOAK_FLAGS)
	@$(BIN)/python -m pytest -q -m soak -o faulthandler_timeout=0

golden: build ## write the golden files anew; review the difference like code
	@$(BIN)/python -m pytest -q --update-golden tests/fs tests/test_generations.py

clean: ## remove everything that was built
	rm -rf build dist $(VENV) *.egg-info vmbusirq/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

valgrind:
	@command -v valgrind >/dev/null || { echo "make soak counts instructions with valgrind, which this system lacks:" >&2; \
		echo "    sudo apt-get install valgrind" >&2; exit 1; }

$(STAMP): pyproject.toml $(CSRC) tools/prerequisites.sh
	@sh tools/prerequisites.sh $(PYTHON) $(CC)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing vmbusirq into $(VENV)"
	@$(PIP_INSTALL) -e '.[test]'
	@touch $@

$(CHECKED): $(STAMP)
	@$(PIP_INSTALL) -e '.[test,check]'
	@touch $@

build/c/warnings: $(CSRC)
	@mkdir -p build/c
	@for f in $$(find csrc -name '*.c'); do $(CC) $(C_FLAGS) -O2 -c $$f -o /dev/null || exit 1; done
	@touch $@

build/c/plain/%: tests/c/%.c $(C_TEST_HEADERS) $(CSRC)
	@mkdir -p $(@D)
	@$(CC) $(C_FLAGS) -O2 $< $(C_CORE) -o $@ $(C_LIBS)

build/c/asan/%: tests/c/%.c $(C_TEST_HEADERS) $(CSRC)
	@mkdir -p $(@D)
	@$(CC) $(C_FLAGS) -O1 -fsanitize=address,undefined -fno-sanitize-recover=all $< $(C_CORE) -o $@ $(C_LIBS)

build/c/tsan/%: tests/c/%.c $(C_TEST_HEADERS) $(CSRC)
	@mkdir -p $(@D)
	@$(CC) $(C_FLAGS) -O1 -fsanitize=thread $< $(C_CORE) -o $@ $(C_LIBS)
