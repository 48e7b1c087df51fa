# Two commands do everything on a machine with Python >= 3.11 and make:
#   make run    set up .venv once, then open the assistant in a browser tab
#   make test   set up .venv once, then run every test
PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
USER_READY := $(VENV)/.requirements
DEV_READY := $(VENV)/.requirements-dev
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export GRADIO_ANALYTICS_ENABLED := 0
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: run test lint format bench train-nano train-ears train-mouth train-language train-debug clean

run: $(USER_READY)
	$(BIN)/python app.py $(ARGS)

test: $(DEV_READY)
	$(BIN)/python -m pytest $(ARGS)

lint: $(DEV_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEV_READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# All figures of the README that this machine can measure, as tables. One alone: .venv/bin/python -m bench decode
bench: $(DEV_READY)
	$(BIN)/python -m bench memory
	$(BIN)/python -m bench decode
	$(BIN)/python -m bench moe
	$(BIN)/python -m bench train
	$(BIN)/python -m bench app
	$(BIN)/python -m bench page
	$(BIN)/python -m bench routing

# The shipped model from nothing: ears, mouth, language model; 385 minutes of training on two cores, besides speech and lessons.
train-nano: train-ears train-mouth train-language

# The ears of the shipped model, from nothing: hours on two cores; stopped anywhere, it continues (see the recipe).
train-ears: $(DEV_READY)
	train/recipes/ears.sh nano $(PEOPLE)

# The mouth from these ears, in an hour and a half on two cores.
train-mouth: $(DEV_READY)
	train/recipes/mouth.sh nano

# The language model from these two: 146 minutes of training on two cores, besides speaking its lessons; and its figures.
train-language: $(DEV_READY)
	train/recipes/language.sh nano $(PEOPLE)

# Every step of every training once, in minutes: what comes out knows nothing, but all of it runs and fits together.
train-debug: $(DEV_READY)
	train/recipes/debug.sh

# A stamp, not the interpreter: a set-up that breaks half-way is started again.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11: install Python >= 3.11, or say make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@PYTHON=$(PYTHON) .ci/system-packages
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "error: $(PYTHON) cannot make virtual environments: install its venv package (Debian: python3-venv)"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); }
	@touch $@

$(USER_READY): requirements.txt | $(VENV)/.made
	$(BIN)/python -m pip install -q $(PIP_FLAGS) -r requirements.txt
	@touch $@

$(DEV_READY): requirements-dev.txt $(USER_READY)
	@PYTHON=$(PYTHON) .ci/system-packages engines
	$(BIN)/python -m pip install -q $(PIP_FLAGS) -r requirements-dev.txt
	@touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .hypothesis
