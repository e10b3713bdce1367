"""The command line: `python -m densewalk`, or the command `densewalk`. Imports nothing but Python's own modules before it must."""

import os
import sys


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status. The workflow's jobs run in a process of its fork server, if they can (cli/forkserver)."""
    if argv is None and os.environ.get("DENSEWALK_FORK_SERVER", "off") != "off":
        from densewalk.cli.forkserver.client import run_by_server

        status = run_by_server()
        if status is not None:
            return status
    if argv is None:  # this process is the command's own
        from densewalk.cli.collection import collect_seldom

        collect_seldom()
    from densewalk.cli.main import main as run_here

    return run_here(argv)


if __name__ == "__main__":
    sys.exit(main())
