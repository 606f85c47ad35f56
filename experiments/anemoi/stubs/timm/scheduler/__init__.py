"""Schedulers of timm: none."""

from timm.scheduler.scheduler import Scheduler as Scheduler
