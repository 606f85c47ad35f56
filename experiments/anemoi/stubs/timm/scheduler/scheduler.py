"""The base class that Anemoi compares schedulers with."""


class Scheduler:
    """Nothing is one: take schedulers of torch, or none."""
