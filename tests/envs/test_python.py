"""envs/python.sh finds or fetches a supported Python: on a PATH that holds only what the test puts there, with a stub in uv's place."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.studies import REPOSITORY

TOOLS = ("sh", "sed", "awk", "grep", "mkdir", "dirname", "cat", "ln")
UV_THAT_FETCHES = """#!/bin/sh
echo "$*" >> "$LOG"
case "$*" in
*--quiet*) ;; # prints nothing at all
"python install --no-bin 3.11") mkdir -p "$UV_PYTHON_INSTALL_DIR" && ln -s "${0%/*}/fetched" "$UV_PYTHON_INSTALL_DIR/python3.11" ;;
"python find --managed-python --system"*) echo "$UV_PYTHON_INSTALL_DIR/python3.11" ;;
esac
"""
UV_WITHOUT_NETWORK = "#!/bin/sh\necho 'error: dns error' >&2\nexit 2\n"


class Machine:
    """A copy of the files that the script reads, and a PATH of its own."""

    def __init__(self, folder: Path) -> None:
        self.root, self.path, self.log = folder / "clone", folder / "path", folder / "log"
        (self.root / "envs").mkdir(parents=True)
        self.path.mkdir()
        for name in ("envs/python.sh", "pyproject.toml", "requirements.lock", "Makefile"):
            shutil.copy2(REPOSITORY / name, self.root / name)
        for tool in TOOLS:
            (self.path / tool).symlink_to(shutil.which(tool))

    def program(self, name: str, text: str) -> None:
        """Put an executable on the PATH."""
        (self.path / name).write_text(text)
        (self.path / name).chmod(0o755)

    def python(self, name: str, version: str, *, venv: bool = True) -> Path:
        """Put this interpreter on the PATH under another version; without `venv` it lacks a module as Debian's does."""
        missing = "" if venv else "sys.modules['ensurepip'] = None; "
        before = f"import sys; {missing}sys.version_info = ({version.replace('.', ', ')}, 0); sys.executable = '{self.path / name}'"
        self.program(name, f'#!{sys.executable}\n{before}\nassert sys.argv[1] == "-c", sys.argv\nexec(sys.argv[2])\n')
        return self.path / name

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the script, or another command."""
        environment = {"PATH": str(self.path), "HOME": str(self.root), "LOG": str(self.log), **variables}
        line = command or ("sh", "envs/python.sh")
        return subprocess.run(line, cwd=self.root, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(("name", "version"), [("python3.11", "3.11"), ("python3.12", "3.12"), ("python3", "3.12")])
def test_a_supported_python_on_the_path_is_taken(machine, name, version):
    machine.python("python3", "3.9")
    found = machine.python(name, version)
    done = machine.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{found}\n", "")
    assert not (machine.root / ".uv").exists()


def test_the_oldest_supported_one_is_preferred(machine):
    machine.python("python3.12", "3.12")
    assert machine.run().stdout == f"{machine.path / 'python3.12'}\n"
    machine.python("python3.11", "3.11")
    assert machine.run().stdout == f"{machine.path / 'python3.11'}\n"


def test_python_is_used_if_it_is_given(machine):
    machine.python("python3.11", "3.11")
    mine = machine.python("mine", "3.12")
    assert machine.run(PYTHON=str(mine)).stdout == f"{mine}\n"


@pytest.mark.parametrize("given", ["old", "missing"])
def test_a_given_python_that_does_not_do_is_an_error_in_one_line(machine, given):
    machine.python("python3.11", "3.11")
    machine.python("old", "3.9")
    done = machine.run(PYTHON=given)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"densewalk: PYTHON={given} is not Python 3.11 or 3.12 with its module venv: "
        "name another one, or leave PYTHON out to have one found or fetched.\n"
    )


def without_a_supported_one(machine: Machine) -> None:
    """An old python3, one without venv, and one that is newer than what is supported."""
    machine.python("python3", "3.9")
    machine.python("python3.11", "3.11", venv=False)
    machine.python("python3.13", "3.13")


def test_uv_brings_one_into_the_project_s_folder(machine):
    without_a_supported_one(machine)
    machine.program("uv", UV_THAT_FETCHES)
    fetched = machine.python("fetched", "3.11")
    done = machine.run()
    assert (done.returncode, done.stdout) == (0, f"{fetched}\n")
    assert done.stderr == (
        "densewalk: no Python 3.11 or 3.12 with its module venv on the PATH: uv fetches 3.11 into .uv/ ...\n"
        f"densewalk: uv brought {fetched}\n"
    )
    assert (machine.root / ".uv/python/python3.11").exists()


def test_what_uv_brings_is_tried_before_it_is_taken(machine):
    without_a_supported_one(machine)
    machine.program("uv", UV_THAT_FETCHES)
    machine.python("fetched", "3.11", venv=False)
    done = machine.run()
    assert (done.returncode, done.stdout) == (1, "")
    assert "it could not be fetched" in done.stderr


def test_uv_itself_is_the_wheel_that_the_lock_names(machine):
    """An old python3 installs it: here a stub of pip that takes the requirement, and puts the stub of uv where the wheel would be."""
    machine.program(
        "python3",
        f"""#!/bin/sh
[ "$1" = -m ] || exit 1
echo "$*" >> "$LOG"
mkdir -p .uv/wheel/bin && cat > .uv/wheel/bin/uv <<'END'
{UV_THAT_FETCHES}END
ln -s {machine.python("fetched", "3.11")} .uv/wheel/bin/fetched
{sys.executable} -c "import os; os.chmod('.uv/wheel/bin/uv', 0o755)"
""",
    )
    done = machine.run()
    assert done.returncode == 0, done.stderr
    assert "-m pip install --quiet --no-deps --require-hashes --target" in machine.log.read_text()
    required = (machine.root / ".uv/uv.lock").read_text()
    (pinned,) = [line for line in (REPOSITORY / "requirements-dev.txt").read_text().splitlines() if line.startswith("uv==")]
    assert required.startswith(pinned)
    assert required.count("--hash=sha256:") > 5
    assert "==" not in required.removeprefix(pinned)


def test_without_a_network_one_line_says_what_to_do(machine):
    without_a_supported_one(machine)
    machine.program("uv", UV_WITHOUT_NETWORK)
    done = machine.run()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[1:] == [
        "densewalk: it could not be fetched (.uv/log.txt says why): install Python 3.11 or 3.12 with venv, "
        "or add PYTHON=/path/to/python3.11 to the command if you have one."
    ]
    assert (machine.root / ".uv/log.txt").read_text() == "error: dns error\n"


def test_make_stops_where_none_is_had(machine):
    without_a_supported_one(machine)
    machine.program("uv", UV_WITHOUT_NETWORK)
    for name in ("requirements.txt", "requirements-mm.txt", "requirements-dev.txt", "requirements-mm.lock"):
        shutil.copy2(REPOSITORY / name, machine.root / name)
    done = machine.run(shutil.which("make") or "make", "install")
    assert done.returncode == 2
    assert "PYTHON=/path/to/python3.11" in done.stderr
    assert not (machine.root / ".venv").exists()


def test_the_package_says_the_same_of_the_interpreter_that_runs_this():
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(["sh", "envs/python.sh"], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
