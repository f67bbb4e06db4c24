# Two commands: `make demo` runs the whole method on a small simulated set; `make test` passes the tests.
# Both set everything up first, in .venv. Without make: the lines of the recipes, by hand.
PYTHON ?= python3
PY := .venv/bin/python
READY := $(if $(filter .venv/bin/python,$(PY)),.venv/ready)
# by which Python would not find a script's own modules
unexport PYTHONSAFEPATH

.PHONY: demo test attack check mutants bench card figure clean

demo: .venv/ready
	$(PY) demo.py

# a process a core, one thread each: small networks gain nothing from a second thread
test: .venv/extras
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2

# the tests of tests/attack, so many seconds each
ATTACK ?= 60
attack: .venv/ready
	ATTACK=$(ATTACK) OMP_NUM_THREADS=1 $(PY) -m pytest tests/attack

check: .venv/ready
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy .

# plants MUTANTS faults, chosen at random from about 1,800, and prints those that no test finds; in a clone, for
# the files are changed. Half a minute each that is found, four minutes each that is not
MUTANTS ?= 100
SAMPLE := d.executescript('create temp table kept as select job_id from mutation_specs where job_id not in \
	(select job_id from work_results) order by random() limit $(MUTANTS); delete from work_results; \
	delete from mutation_specs where job_id not in kept; delete from work_items where job_id not in kept')
mutants: .venv/ready
	$(PY) -m pip install --quiet cosmic-ray
	rm -rf .mutants && git clone --quiet . .mutants && ln -s ../.venv .mutants/.venv
	cd .mutants && export PATH="$$PWD/.venv/bin:$$PATH" OMP_NUM_THREADS=1 && cosmic-ray init tests/mutants.toml s.sqlite \
		&& cr-filter-operators s.sqlite tests/mutants.toml \
		&& python -c "import sqlite3; d = sqlite3.connect('s.sqlite'); $(SAMPLE)" \
		&& cosmic-ray exec tests/mutants.toml s.sqlite \
		&& cr-report --surviving-only --show-diff s.sqlite

# speed and memory of both backbones; ARGS="--logdir A B" of two models
bench: $(READY)
	$(PY) benchmarks/run.py $(ARGS)

# what only a CUDA card shows, the benchmark for 8 minutes at most: card.md, to paste into an issue; with the
# system's Python: make card PY=python3
MINUTES ?= 8
card: SHELL := bash -o pipefail
card: $(READY)
	@{ nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv 2>/dev/null || true; \
	  echo '## tests/cuda'; echo '```'; $(PY) -m pytest tests/cuda -q --tb=line -p no:cacheprovider; tests=$$?; \
	  echo '```'; echo; echo '## benchmarks/run.py $(ARGS)'; \
	  timeout $(MINUTES)m $(PY) benchmarks/run.py --compile $(ARGS) || [ $$? -eq 124 ] && exit $$tests; \
	} 2>&1 | tee card.md

# docs/figure.jpg and docs/failure.jpg
figure: .venv/ready
	$(PY) datasets/simulate.py
	$(PY) docs/figure.py

.venv/ready: requirements.txt tests/requirements.txt constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt -c constraints.txt
	touch $@

# videos and the page have tests too
.venv/extras: .venv/ready photographs/requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r photographs/requirements.txt -c constraints.txt
	touch $@

clean:
	rm -rf .venv .mutants results datasets/simulated trained_model/demo
