"""densewalk: what one long video and a few GPU-hours do for dense image representations."""

__version__ = "0.1.0"
