# What `image` and `compose` share: the static binary, its image, and a place to run containers in that vanishes with the
# script. Sourced after lib.bash, never run.
# shellcheck shell=bash

room="${FLOTTE_ROOM:-}"
static="${FLOTTE_STATIC_BIN:-$target/$(uname -m)-unknown-linux-gnu/debug/flotte}"
image="localhost/flotte:latest"

# enter SCRIPT NAME: everything that needs the network or takes long, then SCRIPT again in namespaces of its own: network,
# so that no port, address or firewall rule meets those of the machine; processes and mounts, so that nothing is left.
enter() {
    local script="$1" name="$2"
    if ((EUID != 0)); then
        skip "$name: needs root for its own namespaces"
        finish "$name"
        exit
    fi
    if ! container_tools || ! unshare --net --mount --pid --fork true 2>/dev/null; then
        skip "$name: no buildah, podman, runc and netavark, or no namespaces"
        finish "$name"
        exit
    fi
    if [[ -z "${FLOTTE_STATIC_BIN:-}" ]]; then
        # The time of a whole build of the dependencies, on a machine that does other things as well.
        STEP_SECONDS=1500 step "static binary" env RUSTFLAGS="-C target-feature=+crt-static -C strip=debuginfo" \
            cargo build --locked --package flotte --bin flotte --target "$(uname -m)-unknown-linux-gnu" ||
            { finish "$name"; exit 1; }
    fi
    # Short: sockets are made in it, whose paths have 108 bytes.
    room="$(mktemp -d -t flotte.XXXXXX)"
    # shellcheck disable=SC2064 # this room, not a later one
    trap "umount -l '$room'/storage/* 2>/dev/null || true; rm -rf '$room'" EXIT
    container_settings
    step "image from the static binary" env STORAGE_DRIVER=vfs "$root/deploy/image/build" \
        --binary "$static" --tag "$image" || { finish "$name"; exit 1; }

    local status=0
    FLOTTE_ROOM="$room" FLOTTE_COUNTS="$passed $failed $skipped" timeout --kill-after=10 "${FLOTTE_CONTAINER_SECONDS:-170}" \
        unshare --net --mount --pid --fork --kill-child --mount-proc "$script" </dev/null || status=$?
    if ((status == 124 || status == 137)); then
        echo "FAIL        $name took longer than ${FLOTTE_CONTAINER_SECONDS:-170} s"
    fi
    exit "$status"
}

# inside: to be called by the script in its namespaces.
inside() {
    read -r passed failed skipped <<<"$FLOTTE_COUNTS"
    container_environment
    ip link set lo up
}

container_tools() {
    local wanted=(buildah podman runc iptables ip readelf curl) tool missing=0
    for tool in "${wanted[@]}"; do
        command -v "$tool" >/dev/null || missing=1
    done
    [[ -x /usr/lib/podman/netavark && -x /usr/lib/podman/aardvark-dns ]] || missing=1
    ((missing)) || return 0
    command -v apt-get >/dev/null || return 1
    DEBIAN_FRONTEND=noninteractive timeout 240 apt-get install -y --no-install-recommends buildah podman runc netavark \
        aardvark-dns catatonit iptables iproute2 binutils curl >"$tools/apt.log" 2>&1 || return 1
    hash -r
}

# No overlays, no cgroups of systemd, and limits that a container's own cannot exceed.
container_settings() {
    mkdir -p "$room/networks" "$room/volumes" "$room/tmp"
    cat >"$room/storage.conf" <<TOML
[storage]
driver = "vfs"
graphroot = "$room/storage"
runroot = "$room/run"
TOML
    cat >"$room/containers.conf" <<TOML
[containers]
default_ulimits = ["nofile=16384:16384", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "$room/tmp"
volume_path = "$room/volumes"
[network]
network_backend = "netavark"
network_config_dir = "$room/networks"
TOML
    container_environment
}

container_environment() {
    export CONTAINERS_STORAGE_CONF="$room/storage.conf" CONTAINERS_CONF="$room/containers.conf"
}

# eventually SECONDS COMMAND...: repeats the command until it succeeds.
eventually() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS >= deadline)); then
            echo "not within the time: $*"
            "$@" || true
            return 1
        fi
        sleep 0.2
    done
}
