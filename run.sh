#!/usr/bin/env bash
# grantlab's one door: sets itself up on first use, then
#   ./run.sh [flags]       launch the machine, run the main job, print the table
#   ./run.sh test [args]   ruff, mypy and every test (args go to pytest)
#   ./run.sh bench [flags] how fast it is, against the memory's limit and against fio + nbdkit
#   ./run.sh python ...    the environment's Python, with grantlab importable
# PYTHON=python3.13 ./run.sh ... does the same on that Python, in an environment of its own.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
keep_caches=2

fail() { echo "grantlab: error: $*" >&2; exit 1; }

# Prints the version of the Python it is given to; or, with status 1, what that one lacks.
judge='
import importlib.util, os, shutil, sys, sysconfig
version = "%d.%d" % sys.version_info[:2]
lacks = ""
if not (3, 11) <= sys.version_info[:2] <= (3, 14):
    lacks = "3.11 to 3.14 are supported"
elif sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
    lacks = "Numba needs the usual build of CPython"
elif not all(map(importlib.util.find_spec, ("venv", "ensurepip"))):
    lacks = "its venv is missing (on Debian: python%s-venv)" % version
elif version == "3.14":  # posix-ipc has no wheel for it yet, and is built
    header = os.path.join(sysconfig.get_path("include"), "Python.h")
    if not (shutil.which("cc") and os.path.exists(header)):
        lacks = "it needs a C compiler and its headers (on Debian: gcc, python3.14-dev)"
print("Python %s: %s" % (version, lacks) if lacks else version)
sys.exit(bool(lacks))
'

find_python() {
    local candidate verdict refused='' candidates=(python3 python3.{13,12,11,14})
    [[ -z ${PYTHON-} ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        command -v "$candidate" >/dev/null || continue
        # Isolated: a user's own path must not lend it what it lacks.
        if verdict=$("$candidate" -I -c "$judge" 2>&1) && [[ $verdict =~ ^3\.[0-9]+$ ]]; then
            command -v "$candidate"
            return
        fi
        refused="$refused; $candidate is no use: ${verdict##*$'\n'}"
    done
    fail "no Python 3.11 to 3.14 found (looked for ${PYTHON:-python3 and python3.11 to python3.14};" \
        "PYTHON names another)$refused"
}

why_pip_failed() {
    if grep -qiE 'connection|connect timeout|name resolution|unreachable|proxyerror' "$log"; then
        echo "the package index cannot be reached (the first run needs a network)"
    elif grep -qi 'no space left' "$log"; then
        echo "no space left on the device"
    else
        { grep -iE '^ *error' "$log" || cat "$log"; } | tail -n 1 | sed 's/^ *ERROR: //'
    fi
}

set_up() {
    local python
    python=$(find_python)
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    trap 'echo "grantlab: interrupted; the next run sets up anew" >&2; exit 130' INT
    echo "grantlab: setting up its environment in ${env##*/} (once, about a minute)" >&2
    # The stamp goes first and comes last: whatever ends this early, the next run starts it over.
    { rm -f "$env/.grantlab-stamp" && rm -rf "$env"; } 2>"$log" \
        || fail "cannot make $env: $(tail -n 1 "$log")"
    "$python" -m venv "$env" >"$log" 2>&1 \
        || fail "'$python -m venv $env' failed: $(tail -n 1 "$log")"
    "$env/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes \
        -r "$root/requirements.lock" >"$log" 2>&1 \
        || fail "installing requirements.lock failed: $(why_pip_failed)"
    stamp >"$env/.grantlab-stamp"
    rm -f "$log"
    trap - EXIT INT
}

# What an environment is made of: an upgraded Python behind the same name leaves it without packages.
stamp() { readlink -f "$env/bin/python" && cat "$root/requirements.lock"; }
is_set_up() { [[ -x $env/bin/python ]] && cmp -s <(stamp) "$env/.grantlab-stamp"; }

# Compiled code of other sources: the most recently used stay, and so does what may be in use (used
# within the hour, or by a process that can be seen).
prune_caches() {
    local old
    rm -rf "$env"/numba/gone.*
    find "$env/numba" -mindepth 1 -maxdepth 1 -type d ! -path "$NUMBA_CACHE_DIR" -printf '%T@ %p\n' \
        | sort -rn | tail -n "+$((keep_caches + 1))" | cut -d ' ' -f 2- | while read -r old; do
        if [[ -n $(find "$old" -maxdepth 0 -mmin +60) ]] \
            && ! grep -qszxF "NUMBA_CACHE_DIR=$old" /proc/[0-9]*/environ; then
            # Renamed first: who begins to use it at this moment finds all of it, or nothing.
            mv "$old" "$env/numba/gone.${old##*/}" && rm -rf "$env/numba/gone.${old##*/}"
        fi
    done
}

env=$root/.venv
if [[ -n ${PYTHON-} ]]; then
    python=$(find_python)
    env=$root/.venv-$("$python" -I -c "$judge")
fi

# Two first runs at once must not build one environment together.
if ! is_set_up; then
    { exec 9>"$env.lock"; } 2>/dev/null || fail "cannot write to $root, where its environment goes"
    flock -n 9 || { echo "grantlab: waiting for another run's set-up" >&2; flock 9; }
    is_set_up || set_up
    exec 9>&-
fi

export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
# Every process does its own work on its own thread: a BLAS pool would only cost start-up time.
export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1

# Numba's own cache does not notice a change in a function's callees: key it by every source.
sources=$(cd "$root" && find common hypervisor xenstored frontend backend machine simulator -name '*.py' -print0 \
    | sort -z | xargs -0 cat | sha256sum | cut -c 1-16)
export NUMBA_CACHE_DIR=$env/numba/$sources
if mkdir -p "$NUMBA_CACHE_DIR" 2>/dev/null && touch "$NUMBA_CACHE_DIR" && { exec 9>"$env.lock"; } 2>/dev/null
then
    # One run prunes at a time; what it cannot remove is no reason not to run.
    if flock -n 9; then prune_caches || true; fi
    exec 9>&-
fi

case "${1-}" in
test)
    shift
    cd "$root"
    "$env/bin/ruff" check .
    "$env/bin/ruff" format --check .
    "$env/bin/mypy"
    # A worker for each CPU that we may use: OMP_NUM_THREADS, which nproc obeys, says something else.
    # They take each other's tests: the longest are the last, and would all be one's.
    exec "$env/bin/pytest" -n "$(env -u OMP_NUM_THREADS nproc)" --dist worksteal "$@"
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
