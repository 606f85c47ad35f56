# make demo | test | lint | setup | clean. Every target does the set-up that is missing, in .venv.
.PHONY: help demo test lint setup ready clean

help:
	@echo 'make demo    train a graph network by two-level domain decomposition on two MPI ranks, next to Adam'
	@echo 'make test    run all tests (ARGS="-k schwarz" for some of them)'
	@echo 'make lint    check style and types'
	@echo 'make setup   the set-up alone; tries again what could not be built'
	@echo 'make clean   remove the environment and what was built'

ready:
	@sh setup.sh

setup:
	@sh setup.sh --retry

demo: ready
	@sh demo.sh

test: ready
	.venv/bin/pytest $(ARGS)

# mypy cannot see the package map of setup.cfg through an editable install: it checks an installed tree.
lint: ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	rm -rf build
	.venv/bin/pip install --quiet --no-deps --no-build-isolation --target build/tree .
	MYPYPATH=build/tree .venv/bin/mypy --strict -p mldd

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
