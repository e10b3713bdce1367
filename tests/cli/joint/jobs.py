"""Jobs as Snakemake has them, as far as entries look at them."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from snakemake.iocontainers import ResourceList

ASKED = {"gpu": 1, "mem_mb": 16_000, "runtime": 240, "slurm_partition": "gpu", "joint_minutes": 1440, "node_mem_mb": 500_000}


@dataclass(eq=False)
class FakeJob:
    """A job. told: what Snakemake was told of its end."""

    evaluation: str
    run: str = "dora"
    seed: int = 0
    asked: dict[str, Any] = field(default_factory=dict)
    protocol: str = "davis"
    threads: int = 4
    attempt: int = 1
    priority: int = 1
    jobid: int = 1
    _scheduler_resources: dict[str, Any] | None = None

    @property
    def rule(self):
        return SimpleNamespace(name=f"evaluate_{self.protocol}")

    @property
    def resources(self):
        return ResourceList(fromdict={**ASKED, "_cores": self.threads, **self.asked})

    @property
    def scheduler_resources(self):
        if self._scheduler_resources is None:
            self._scheduler_resources = {"_nodes": 1}
        return self._scheduler_resources

    @property
    def wildcards_dict(self):
        return {"run": self.run, "seed": str(self.seed), "evaluation": self.evaluation}

    @property
    def wildcards(self):
        return [*self.wildcards_dict.values()]
