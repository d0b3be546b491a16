# Every command of the project. `make help` lists them.
SHELL := /bin/sh
PYTHON ?= python3
PORT ?= 8888
JUPYTER_ARGS ?=
WORKERS ?= 3
ARITHMETIC ?=
OUT ?= runs/digits
COMPARE_ARGS ?= digits --methods fedlora,ffa-lora,rolora,deer,la-lora,fedlpp --epsilon 8 --seeds 3

# One thread for each worker; modules compiled once for all the processes that tests start; and
# glibc keeps the memory of tensors that come and go at every step, in large pages.
QUICK := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= MALLOC_MMAP_THRESHOLD_=67108864 \
	MALLOC_TRIM_THRESHOLD_=268435456 GLIBC_TUNABLES=glibc.malloc.hugetlb=1

# Training ends at other digits on another processor; these are the kinds that torch and MKL know.
ARITHMETIC_default := ATEN_CPU_CAPABILITY=default
ARITHMETIC_avx2 := ATEN_CPU_CAPABILITY=avx2
ARITHMETIC_avx512 := ATEN_CPU_CAPABILITY=avx512
ARITHMETIC_compatible := MKL_CBWR=COMPATIBLE
ifneq ($(ARITHMETIC),)
ifeq ($(ARITHMETIC_$(ARITHMETIC)),)
$(error ARITHMETIC=$(ARITHMETIC): expected default, avx2, avx512 or compatible)
endif
QUICK += $(ARITHMETIC_$(ARITHMETIC))
endif

BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
TRAINED := $(foreach number,01 05 08 14 12,$(wildcard notebooks/$(number)_*.ipynb))

.DEFAULT_GOAL := help
.PHONY: help setup lab check quick test trained book compare federation bench lint format pins clean

help: ## list the commands
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1|\2/' | awk -F'|' '{printf "%-16s %s\n", $$1, $$2}'
	@echo
	@echo "  settings: PYTHON=python3.12 (for setup), PORT=9000 and JUPYTER_ARGS=\"--ip=0.0.0.0\" (for lab),"
	@echo "            WORKERS=8 and ARITHMETIC=default, another processor's arithmetic (for test and trained),"
	@echo "            OUT=runs/mine and COMPARE_ARGS=\"...\" (for compare)"

setup: $(STAMP) ## create .venv and install the tested set of packages into it

# Each file by its digest, but for torch, whose builds differ with the machine's accelerator.
$(STAMP): pyproject.toml fedlora_course/pyproject.toml dp_review/pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else "Python %d.%d found, 3.11 to 3.13 needed: make setup PYTHON=python3.12" % v)'
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv .venv || { echo 'No virtual environment could be made. On Debian or Ubuntu: apt-get install python3-venv'; exit 1; }
	$(PIP) --no-deps --require-hashes -r requirements.lock
	$(PIP) -c constraints.txt torch
	$(PIP) --no-deps -e . -e ./fedlora_course -e ./dp_review
	@command -v chromium >/dev/null 2>&1 || command -v google-chrome >/dev/null 2>&1 || echo 'No Chromium found: tests that need a browser will fail. On Debian: apt-get install chromium'
	@touch $(STAMP)

# At its first start JupyterLab asks whether to fetch news, in a box that covers what is below it.
NO_NEWS := {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}

# A copy, or autosave would change the files that git tracks; what is there already stays.
lab: setup ## open JupyterLab on your own copy of the course, in my_notebooks
	@$(BIN)/python scripts/notebooks.py copy $(NOTEBOOKS)
	@mkdir -p .venv/share/jupyter/lab/settings/overrides.d
	@echo '$(NO_NEWS)' > .venv/share/jupyter/lab/settings/overrides.d/fedlora.json
	@extra=''; \
	if [ "$$(id -u)" = 0 ]; then extra='--allow-root'; fi; \
	if [ "$$(uname)" = Linux ] && [ -z "$$DISPLAY$$WAYLAND_DISPLAY" ] && [ -z "$$WSL_DISTRO_NAME" ]; then extra="$$extra --no-browser"; fi; \
	exec $(BIN)/python -m jupyterlab --ContentsManager.pre_save_hook=fedlora_course.saving.without_views --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/my_$(firstword $(NOTEBOOKS)) \
		--port=$(PORT) $$extra $(JUPYTER_ARGS)

# Lint has the second core while the libraries are loaded, once for both workers. Without nbmake: no
# notebook is run here, and importing it costs each worker two seconds.
check: setup ## before a commit: format, lint, types, and the tests that take no time
	@$(MAKE) --no-print-directory -j2 lint quick

quick: setup ## the tests that take no time, without format, lint and types
	$(QUICK) $(BIN)/python scripts/warm_kernels.py $(BIN)/python -m pytest --tx '2*popen//python={warm}' \
		--dist worksteal --max-worker-restart=8 -p no:nbmake -q -m 'not slow and not further' tests

PYTEST = $(QUICK) $(BIN)/python scripts/warm_kernels.py $(BIN)/python -m pytest --tx '$(WORKERS)*popen//python={warm}' \
	--dist loadgroup --no-loadscope-reorder --max-worker-restart=8 -q --nbmake --nbmake-kernel=warm --nbmake-timeout=1200

test: setup ## run every notebook and the tests, but for some long cases
	$(PYTEST) -m 'not further' $(NOTEBOOKS) tests

# What `test` leaves out for its time, this runs; CI runs both.
trained: setup ## run five notebooks, the tests that assert what training made, what `test` leaves out, and the studies' own
	$(PYTEST) -m 'trains or further' $(TRAINED) tests
	$(BIN)/python -m pytest -n0 -p no:nbmake -q studies/tests

book: setup ## build the site with the notebooks as they stand into build/book
	OMP_NUM_THREADS=1 $(BIN)/python scripts/book.py

compare: setup ## train the six methods on digits at epsilon 8 and write a report
	$(BIN)/fedlora-lab compare $(COMPARE_ARGS) --out $(OUT)

federation: setup ## a server and two sites on Flower, as processes of this machine
	$(BIN)/python examples/flower_app/local.py federation

bench: setup ## measure speed beside peers, one thread each; rewrites benchmarks/results
	$(QUICK) $(BIN)/python -m benchmarks

lint: setup ## ruff, pyrefly, and which package may import which
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports

format: setup ## let ruff rewrite the layout of the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

pins: setup ## write constraints.txt from the versions now installed
	$(BIN)/python scripts/pins.py

clean: ## remove .venv, caches and build folders; runs/ stays
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
