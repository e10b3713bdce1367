# Before Snakemake reads the configuration, in which it lets the last of two equal keys win without a word.
from pathlib import Path

from snakemake.exceptions import WorkflowError

from densewalk.cli.collection import collect_seldom
from densewalk.core.config_file import read_config
from densewalk.core.errors import UserError

collect_seldom()

if {"{", "}"} & set(str(workflow.basedir)):
    raise WorkflowError(
        f"{workflow.basedir}: Snakemake takes {{ and }} for wildcards; move the clone to a folder without them"
    )

try:
    for file in dict.fromkeys([*workflow.configfiles, "config.yaml"]):
        if Path(file).is_file():
            read_config(file)
except UserError as error:
    raise WorkflowError(str(error))
