# What the shells of a cluster's machines know: `ray up` has ~/.bashrc read this file. Bash.
# RAY_TMPDIR holds Ray's files on each machine. It is on the machine's own disk, short (Ray's sockets lie in it) and this
# cluster's alone: by it `--address auto` finds the cluster, and `ray stop` its processes.
export RAY_TMPDIR="${RAY_TMPDIR:-/tmp/clar}"
export PATH="$HOME/clar/.venv/bin:$PATH"
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
mkdir -p -m 700 "$RAY_TMPDIR"

# All that `ray start` has started name their files there, but for the server of Ray's clients, which names the cluster.
clar_processes() {
    local address
    address=$(cat "$RAY_TMPDIR/ray/ray_current_cluster" 2>/dev/null)
    pgrep -u "$(id -u)" -f -- "$RAY_TMPDIR/ray/session_|ray[.]util[.]client[.]server --address=${address:-none} "
}

# Ray's own `ray stop`, which `ray down` runs too, ends every Ray on the machine; this one the cluster's. Workers end
# with their raylet.
ray() {
    if [ "${1-}" != stop ]; then
        command ray "$@"
        return
    fi
    local signal
    for signal in TERM KILL; do
        clar_processes | xargs -r kill -s "$signal" 2>/dev/null
        for _ in $(seq 100); do
            clar_processes >/dev/null || return 0
            sleep 0.1
        done
    done
    echo "processes of $RAY_TMPDIR do not end: $(clar_processes | xargs)" >&2
    return 1
}
