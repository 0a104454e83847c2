"""Phantoms written as challenges write their data: for the demo and the tests."""

from hssl_dist.synthetic.layouts import NiftiWriter
from hssl_dist.synthetic.phantoms import TASKS, write_phantoms, write_task

__all__ = ["TASKS", "NiftiWriter", "write_phantoms", "write_task"]
