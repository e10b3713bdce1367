#!/bin/sh
# Print a Python that densewalk supports (requires-python in pyproject.toml): PYTHON if it is given, else one on the PATH, else one that uv brings.
#
#     python=$(sh envs/python.sh) && "$python" -m venv .venv
#
# uv is the one on the PATH, or the wheel that requirements.lock names, installed in .uv/ by any python3. Everything it brings is in .uv/.
# Messages go to stderr.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
set -- $(sed -n 's/^requires-python = ">=3\.\([0-9]*\),<3\.\([0-9]*\)"$/\1 \2/p' "$root/pyproject.toml")
first=$1 end=$2
supported="Python 3.$first" minor=$((first + 1))
while [ "$minor" -lt "$end" ]; do
    supported="$supported or 3.$minor" minor=$((minor + 1))
done

say() { echo "densewalk: $*" >&2; }

# Print where an interpreter is if it is of a supported version and can make environments. Debian's needs python3-venv for that.
usable() {
    "$1" -c "
import sys
if not (3, $first) <= sys.version_info[:2] < (3, $end): sys.exit(1)
import ensurepip, venv
print(sys.executable)" 2> /dev/null
}

if [ -n "${PYTHON:-}" ]; then
    usable "$PYTHON" && exit 0
    say "PYTHON=$PYTHON is not $supported with its module venv: name another one, or leave PYTHON out to have one found or fetched."
    exit 1
fi

minor=$first
while [ "$minor" -lt "$end" ]; do
    usable "python3.$minor" && exit 0
    minor=$((minor + 1))
done
usable python3 && exit 0

log=$root/.uv/log.txt
mkdir -p "$root/.uv" && : > "$log"
export UV_CACHE_DIR="$root/.uv/cache" UV_PYTHON_INSTALL_DIR="$root/.uv/python"

# Print where uv is, installed first if it is not on the PATH
uv_here() {
    command -v uv && return 0
    uv=$root/.uv/wheel/bin/uv
    if [ ! -x "$uv" ]; then
        awk '/^uv==/ { on = 1 } on { print; if ($0 !~ /\\$/) exit }' "$root/requirements.lock" > "$root/.uv/uv.lock"
        install="-m pip install --quiet --no-deps --require-hashes --target $root/.uv/wheel -r $root/.uv/uv.lock"
        python3 $install >> "$log" 2>&1 || # a python3 without pip may have venv
            { python3 -m venv "$root/.uv/pip" && "$root/.uv/pip/bin/python" $install; } >> "$log" 2>&1 || return 1
    fi
    echo "$uv"
}

say "no $supported with its module venv on the PATH: uv fetches 3.$first into .uv/ ..."
uv=$(uv_here) &&
    "$uv" python install --no-bin "3.$first" >> "$log" 2>&1 &&
    found=$("$uv" python find --managed-python --system --no-project "3.$first" 2>> "$log") &&
    found=$(usable "$found") &&
    say "uv brought $found" && echo "$found" && exit 0
say "it could not be fetched (.uv/log.txt says why): install $supported with venv, or add PYTHON=/path/to/python3.$first to the command if you have one."
exit 1
