# What `check`, `image` and `compose` share: steps that are counted, skips that are counted, tools that come from the
# outside. Sourced, never run.
# shellcheck shell=bash

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
target="${CARGO_TARGET_DIR:-$root/target}"
tools="$target/deploy-tools"
mkdir -p "$tools"

passed=0
failed=0
skipped=0

# step NAME COMMAND...: runs the command, at most $STEP_SECONDS long; shows its output when it fails.
step() {
    local name="$1" log began status=0
    shift
    log="$(mktemp "$tools/step.XXXXXX")"
    began="$SECONDS"
    if [[ "$(type -t "$1")" == function ]]; then
        "$@" >"$log" 2>&1 </dev/null || status=$?
    else
        timeout --kill-after=5 "${STEP_SECONDS:-120}" "$@" >"$log" 2>&1 </dev/null || status=$?
    fi
    if ((status == 0)); then
        passed=$((passed + 1))
        printf 'ok    %3ds  %s\n' "$((SECONDS - began))" "$name"
    else
        failed=$((failed + 1))
        printf 'FAIL  %3ds  %s (exit %d)\n' "$((SECONDS - began))" "$name" "$status"
        sed 's/^/      | /' "$log" | tail -n 60
    fi
    rm -f "$log"
    return "$status"
}

# skip REASON: counted here, and by tests/run through the file that it names.
skip() {
    skipped=$((skipped + 1))
    printf 'skip        %s\n' "$1"
    if [[ -n "${FLOTTE_SKIPS:-}" ]]; then
        printf 'skip: %s\n' "$1" >>"$FLOTTE_SKIPS"
    fi
}

# finish NAME: the last line and the exit code.
finish() {
    printf '%s: %d passed, %d failed, %d skipped\n' "$1" "$passed" "$failed" "$skipped"
    ((failed == 0))
}

# debian_tool COMMAND PACKAGE: prints the path of a command that is installed, or takes it out of Debian's package
# without installing that (promtool comes with a daemon that would be started). Fails when neither works.
debian_tool() {
    local command="$1" package="$2" room="$tools/debian-$2"
    if command -v "$command"; then
        return 0
    fi
    if [[ ! -x "$room/usr/bin/$command" ]]; then
        command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
        rm -rf "$room"
        mkdir -p "$room"
        (cd "$room" && timeout 60 apt-get download "$package" && dpkg-deb -x ./*.deb .) >/dev/null 2>&1 || return 1
    fi
    "$room/usr/bin/$command" --version >/dev/null 2>&1 || return 1
    echo "$room/usr/bin/$command"
}

# python_tools: makes the venv with what requirements.txt names, once for each version of that file.
python_tools() {
    local wanted="$root/tests/deploy/requirements.txt" venv="$tools/venv"
    if ! cmp -s "$wanted" "$venv/requirements.txt"; then
        rm -rf "$venv"
        python3 -m venv "$venv" && timeout 180 "$venv/bin/pip" install --quiet --requirement "$wanted" || return 1
        cp "$wanted" "$venv/requirements.txt"
    fi
}

# flotte_binary: prints the path of a built binary; FLOTTE_BIN goes first.
flotte_binary() {
    local candidate
    for candidate in "${FLOTTE_BIN:-}" "$target/debug/flotte" "$target/release/flotte"; do
        # A binary that cannot even tell its version is none.
        if [[ -x "$candidate" ]] && "$candidate" --version 2>/dev/null | grep -q '^flotte '; then
            echo "$candidate"
            return 0
        fi
    done
    return 1
}
