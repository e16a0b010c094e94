#!/usr/bin/env bash
# grantlab's one door: sets itself up on first use, then
#   ./run.sh [flags]       launch the machine, run the main job, print the table
#   ./run.sh test [args]   ruff, mypy and every test (args go to pytest)
#   ./run.sh bench [flags] how fast it is, against the memory's limit and against fio + nbdkit
#   ./run.sh python ...    the environment's Python, with grantlab importable
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
env=$root/.venv
stamp=$env/.grantlab-lock

fail() { echo "grantlab: error: $*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "no Python >= 3.11 found (tried python3, python3.14 .. python3.11; set PYTHON to name one)"
}

set_up() {
    local python log
    python=$(find_python)
    log=$(mktemp)
    echo "grantlab: setting up its environment in .venv (once, about a minute)" >&2
    rm -rf "$env"
    "$python" -m venv "$env" >"$log" 2>&1 \
        || fail "'$python -m venv' failed; on Debian install python3-venv: $(tail -n 1 "$log")"
    "$env/bin/pip" install --quiet --disable-pip-version-check --require-hashes \
        -r "$root/requirements.lock" >"$log" 2>&1 \
        || fail "installing requirements.lock failed: $(grep -i error "$log" | tail -n 1)"
    rm -f "$log"
    cp "$root/requirements.lock" "$stamp"
}

# Two first runs at once must not build one environment together.
exec 9>"$root/.venv.lock"
flock 9
cmp -s "$root/requirements.lock" "$stamp" || set_up
exec 9>&-

export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
# Every process does its own work on its own thread: a BLAS pool would only cost start-up time.
export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1

# Numba's own cache does not notice a change in a function's callees: key it by every source.
sources=$(cd "$root" && find common hypervisor xenstored frontend backend simulator -name '*.py' -print0 \
    | sort -z | xargs -0 cat | sha256sum | cut -c 1-16)
export NUMBA_CACHE_DIR=$env/numba/$sources

case "${1-}" in
test)
    shift
    cd "$root"
    "$env/bin/ruff" check .
    "$env/bin/ruff" format --check .
    "$env/bin/mypy"
    exec "$env/bin/pytest" -n "$(nproc)" "$@"
    ;;
bench)
    shift
    exec "$env/bin/python" -m bench "$@"
    ;;
python)
    shift
    exec "$env/bin/python" "$@"
    ;;
*)
    exec "$env/bin/python" -m toolstack "$@"
    ;;
esac
