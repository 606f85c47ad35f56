"""Solvers: frozen hyper-parameters with `init` and `step`, one file per family of methods."""
