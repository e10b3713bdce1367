"""What a job asks a scheduler for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """Of a job at the scale of the papers; a profile's `set-resources` and `set-threads` override it.

    threads: CPUs. mem_mb: of the first attempt; more after a lack of memory (workflow/rules/scheduler.smk). runtime: minutes.
    """

    gpu: int = 1
    threads: int = 8
    mem_mb: int = 16_000
    runtime: int = 240
