VENV := .venv
PY := $(VENV)/bin/python
.DEFAULT_GOAL := help
.PHONY: help demo env test torture soak mutate gpu lint fix docs assets bench bench-gpu race memory scale fuzz clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{printf "  make %-9s %s\n", $$1, $$2}'

# the stamp is newer than what decides the environment, so a second run does nothing
$(VENV)/.done: pyproject.toml constraints.txt
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "zoedge needs Python >= 3.11"; exit 2; }
	test -x $(PY) || python3 -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

env: $(VENV)/.done  ## make .venv with the tested versions (constraints.txt)

demo: env  ## fetch the embedded model and data, and fine-tune it: recipes/quickstart.yaml
	$(VENV)/bin/zoedge finetune recipes/quickstart.yaml

test: lint  ## ruff, mypy and the default test suite
	$(PY) -m pytest -n 2 --dist loadfile

torture: env  ## the torture suites at their nightly sizes, a line of counts each: hours; ZOEDGE_SEED=n for another seed
	$(PY) -m pytest -s -m torture --timeout 0

MINUTES ?= 30
soak: env  ## a run that is killed, signalled, left without disk: for 30 minutes (MINUTES=n), then compared
	OMP_NUM_THREADS=1 $(PY) tests/helpers/soak.py --minutes $(MINUTES)

mutate: env  ## change the log's and the replay's source, one thing at a time: do the tests notice? Half an hour
	OMP_NUM_THREADS=1 $(PY) tests/helpers/mutate.py

gpu: env  ## the tests that need a CUDA device and a torch built for it, Triton's kernel too: a verdict a line
	$(PY) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "no CUDA device is visible to torch")'
	$(PY) -m pytest -v -rs -m gpu

lint: env  ## ruff and mypy alone
	$(VENV)/bin/ruff format --check --quiet . && $(VENV)/bin/ruff check --quiet . && $(VENV)/bin/mypy

fix: env  ## let ruff format and mend
	$(VENV)/bin/ruff check --fix --quiet . ; $(VENV)/bin/ruff format --quiet .

docs: env  ## make docs/methods.md, docs/lab.md, docs/cli.md and zoedge/recipe/keys.json anew
	$(PY) docs/generate.py

RECORD := runs/assets
assets: env  ## make README's pictures anew: record a demo (minutes), photograph its report (needs Chromium)
	rm -rf $(RECORD)
	$(PY) assets/record.py $(RECORD)
	$(PY) assets/draw.py $(RECORD)/session.json assets/demo.svg
	$(VENV)/bin/zoedge report $(RECORD)/runs/quickstart
	$(PY) assets/photograph.py $(RECORD)/runs/quickstart/report.html assets/report.png

bench: env  ## a step against plain inference and MeZO's own, time and memory; its parts; docs/benchmarks.md
	$(PY) benchmarks/step.py
	$(PY) benchmarks/parts.py
	$(PY) benchmarks/report.py

bench-gpu: env  ## a step at the sizes of 7B and 13B on a CUDA device: time, peak memory; docs/benchmarks.md
	$(PY) benchmarks/gpu.py
	$(PY) benchmarks/report.py

race: env  ## forward passes and seconds to an accuracy, first-order LoRA beside them: half an hour
	$(PY) benchmarks/race.py
	$(PY) benchmarks/report.py

memory: env  ## peak memory and time of a step beside first-order LoRA, by blocks, tokens and rows: most of an hour
	$(PY) benchmarks/memory.py
	$(PY) benchmarks/report.py

scale: env  ## workers that share a step, and a model larger than its memory: docs/benchmarks.md
	$(PY) benchmarks/scale.py
	$(PY) benchmarks/report.py

SECONDS_EACH ?= 30
fuzz: env  ## four fuzzers on log, recipe, rows and safetensors, 30 s each (SECONDS_EACH=900); needs the extra fuzz
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	for name in log recipe rows safetensors; do \
	  OMP_NUM_THREADS=1 $(PY) tests/fuzz/$$name.py -max_total_time=$(SECONDS_EACH) -verbosity=0 -print_final_stats=1 || exit 1; done

clean:  ## remove the environment (runs and the cache stay)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
