"""The jobs that take longest of a profiled run of a study, and the functions in which they spend their CPU time.

DENSEWALK_PROFILE=profiles snakemake --cores 2 all
python -m benchmarks.profiles profiles                  # five jobs, six functions of each
python -m benchmarks.profiles profiles --jobs 10 --functions 12
"""

import argparse
import pstats
import re
from pathlib import Path

Function = tuple[str, int, str]  # file, line, name


def main(argv: list[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what DENSEWALK_PROFILE named")
    parser.add_argument("--jobs", type=int, default=5)
    parser.add_argument("--functions", type=int, default=6)
    args = parser.parse_args(argv)
    profiles = {path.stem: pstats.Stats(str(path)) for path in sorted(args.folder.glob("*.prof"))}
    if not profiles:
        parser.error(f"{args.folder} holds no profile; run jobs with DENSEWALK_PROFILE={args.folder} in the environment")
    longest = sorted(profiles, key=lambda name: -seconds(profiles[name]))[: args.jobs]
    together = sum(map(seconds, profiles.values()))
    print(f"{len(profiles)} jobs, {together:.0f} CPU s in all; a function's share is its own time, without what it calls\n")
    print("| job | CPU s | functions |\n|---|---|---|")
    for name in longest:
        print(f"| `{name}` | {seconds(profiles[name]):.1f} | {parts(profiles[name], args.functions)} |")


def seconds(profile: pstats.Stats) -> float:
    """CPU seconds of a job."""
    return float(profile.total_tt)  # type: ignore[attr-defined]


def parts(profile: pstats.Stats, most: int) -> str:
    """The functions with the largest own times, and their shares."""
    own = {function: entry[2] for function, entry in profile.stats.items()}  # type: ignore[attr-defined]
    largest = sorted(own, key=lambda function: -own[function])[:most]
    return ", ".join(f"{called(function)} {own[function] / seconds(profile):.0%}" for function in largest)


def called(function: Function) -> str:
    """A function's name with its module, or as Python calls a built-in one."""
    file, _, name = function
    if builtin := re.search(r"method '?([\w.]+)'? of '([\w.]+)'|built-in method ([\w.]+)", name):
        return f"`{builtin[3] or f'{builtin[2]}.{builtin[1]}'}`"
    parts = Path(file).with_suffix("").parts
    return f"`{'.'.join(parts[-2:])}.{name}`"


if __name__ == "__main__":
    main()
