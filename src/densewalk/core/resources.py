"""What a job asks a scheduler for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """Of a job at the scale of the papers; a profile's `set-resources` and `set-threads` override it.

    mem_mb: of the first attempt, n times as much for the n-th. runtime: minutes.
    """

    gpu: int = 1
    threads: int = 8
    mem_mb: int = 16_000
    runtime: int = 240
