#!/usr/bin/env bash
# Runs inside the new environment: what a requirements file cannot say (--no-deps), and densewalk itself.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
pip install --require-hashes --no-deps -r "$here/../requirements-mm.lock"
pip install --no-deps "$here/.."
