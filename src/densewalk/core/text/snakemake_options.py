"""Which study a command line of Snakemake is about, for the commands that a message proposes. Free of torch."""

import shlex
from collections.abc import Sequence
from pathlib import Path

ONE = ("-d", "--directory", "-s", "--snakefile")
MANY = ("--configfile", "--configfiles")


def place_options(argv: Sequence[str]) -> str:
    """The options that say which folder, workflow and study are meant, as they were given, with a space before them.

    Args:
        argv: words after `snakemake`. Abbreviations of options, and what a profile says, are not known here.
    """
    found: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word.split("=")[0] not in (*ONE, *MANY):
            continue
        found.append(word)
        while "=" not in word and words and not words[0].startswith("-") and (word in MANY or found[-1] == word):
            found.append(words.pop(0))
    return "".join(f" {shlex.quote(word)}" for word in found)


def study_file(argv: Sequence[str]) -> Path:
    """The study's file from where the command was given: the last of `--configfile`, or config.yaml of `--directory`."""
    words = [part for word in shlex.split(place_options(argv)) for part in word.split("=", 1)]
    folder, files = Path(), list[str]()
    option = ""
    for word in words:
        if word in (*ONE, *MANY):
            option = word
        elif option in ("-d", "--directory"):
            folder = Path(word)
        elif option in MANY:
            files.append(word)
    return Path(files[-1]) if files else folder / "config.yaml"
