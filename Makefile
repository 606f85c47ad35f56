# make demo | test | test-portable | trust | experiments | anemoi | paper | manual | lint | setup | clean: each does the set-up that is missing.
.PHONY: help demo test test-portable trust experiments anemoi paper manual lint setup ready clean

help:
	@echo 'make demo           train graph networks by domain decomposition on two MPI ranks, next to synchronous training'
	@echo 'make test           run all tests (ARGS="-k schwarz" for some of them, ARGS="-n 0" in one process)'
	@echo 'make test-portable  run all tests as on other processors, with other kernels and numbers of threads'
	@echo 'make trust          damage files, lines and runs by the thousand; tables go to paper/results/trust (hours)'
	@echo 'make experiments    follow papers, KEY=dolean2016raspen for one; what was broken off goes on (hours)'
	@echo 'make anemoi         make .venv-anemoi with Anemoi on a CPU, and run the tests that need it (minutes)'
	@echo 'make paper          write the pages of paper/ as HTML, the results from their files'
	@echo 'make manual         build the manual of paper/manual as HTML in build/manual; the first time it fetches Sphinx'
	@echo 'make lint           check style and types'
	@echo 'make setup          the set-up alone; tries again what could not be built'
	@echo 'make clean          remove the environment and what was built'

ready:
	@sh setup.sh

setup:
	@sh setup.sh --retry

demo:
	@sh demo.sh

# A process per core, at most four, for each holds torch; a file of tests is one process's, and so are all tests of ranks.
PYTEST = .venv/bin/pytest -n auto --maxprocesses 4

test: ready
	$(PYTEST) $(ARGS)

# Last digits depend on the processor: on the kernels that torch (ATen), MKL and OpenBLAS choose, and on the threads that
# share a sum. The first variant is the one without vector instructions. All variants run, also after one that failed.
test-portable: ready
	@failed=0; \
	for variant in \
		'OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE OPENBLAS_CORETYPE=Sandybridge' \
		'OMP_NUM_THREADS=2 ATEN_CPU_CAPABILITY=default OPENBLAS_CORETYPE=Haswell' \
		'OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=avx2 OPENBLAS_CORETYPE=Haswell' \
		'OMP_NUM_THREADS=2 ATEN_CPU_CAPABILITY=avx2 OPENBLAS_CORETYPE=Sandybridge' \
		'OMP_NUM_THREADS=1' \
		'OMP_NUM_THREADS=2'; \
	do \
		echo "== $$variant"; \
		env $$variant $(PYTEST) $(ARGS) || { echo "== failed: $$variant"; failed=1; }; \
	done; \
	exit $$failed

# Every script says what is a fault and ends with status 1 where there is one; all run, also after one that failed.
trust: ready
	@failed=0; \
	for script in experiments/trust/*.py; do \
		case $$script in */mutations.py) continue;; esac; \
		echo "== $$script"; \
		OMP_NUM_THREADS=1 .venv/bin/python $$script $(ARGS) || { echo "== failed: $$script"; failed=1; }; \
	done; \
	exit $$failed

# Folders with a job.slurm follow a paper each. All scripts run, also after one that failed; then tables are drawn. What
# paper/results has was made by older code, or with the smaller settings in its first lines, and is not continued here.
RESULTS = runs
KEY = $(patsubst experiments/%/job.slurm,%,$(wildcard experiments/*/job.slurm))
experiments: ready
	@failed=0; \
	for key in $(KEY); do \
		for script in experiments/$$key/*.py; do \
			name=experiments.$$key.$$(basename $$script .py); \
			echo "== $$name"; \
			OMP_NUM_THREADS=1 .venv/bin/python -m $$name --out $(RESULTS)/$$key $(ARGS) \
				|| { echo "== failed: $$name"; failed=1; }; \
		done; \
		.venv/bin/python -m experiments.pictures $$key --results $(RESULTS) || failed=1; \
	done; \
	exit $$failed

# Anemoi's pins and ours exclude each other: an environment of its own, which is no part of the other targets.
anemoi:
	@sh experiments/anemoi/setup.sh
	OMP_NUM_THREADS=1 .venv-anemoi/bin/python -m pytest tests/anemoi $(ARGS)

# Pages of paper/ as HTML in build/paper; results.md is written anew from the files in paper/results.
paper: ready
	.venv/bin/python paper/build.py --results
	.venv/bin/python paper/figures.py
	.venv/bin/python paper/manual/pictures.py
	.venv/bin/python paper/build.py

# Sphinx and what it stands on: for the manual alone, so that tests and users do without.
.venv/stages/manual: paper/manual/requirements.txt | ready
	.venv/bin/pip install --quiet --no-deps -r $<
	@touch $@

# Warnings are errors, and all of them are shown; all pages are made anew, for they show what the code says and does.
manual: .venv/stages/manual
	.venv/bin/python -m sphinx -E -W --keep-going -q -j auto paper/manual build/manual
	@echo build/manual/index.html

# mypy cannot see the package map of setup.cfg through an editable install: it checks an installed tree.
lint: ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	rm -rf build
	.venv/bin/pip install --quiet --no-deps --no-build-isolation --target build/tree .
	MYPYPATH=build/tree .venv/bin/mypy --strict -p mldd

clean:
	rm -rf .venv .venv-anemoi build *.egg-info .mypy_cache .ruff_cache .pytest_cache
