# Shared by `up` and `down`; sourced, never run.

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
state="${CAIRN_DEV_DIR:-$here/../target/minio-dev}"
conf="$state/ceph.conf"

fail() {
    echo "minio-dev: $*" >&2
    exit 1
}

say() {
    echo "minio-dev: $*" >&2
}

pid_file() {
    echo "$state/run/$1.pid"
}

# A pid file names a process and the moment it started, so that a reused pid is never taken for ours.
started_at() {
    # Fields 3 and 22 of stat; the second field may hold blanks, so count from behind its closing bracket.
    # A zombie has ended: whoever should collect it may take seconds.
    sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '$1 !~ /[ZX]/ { print $20 }'
}

running() {
    local file pid start
    file="$(pid_file "$1")"
    [ -f "$file" ] || return 1
    read -r pid start <"$file"
    [ -n "$start" ] && [ "$(started_at "$pid")" = "$start" ]
}

# Ends every named process: asks all, waits for each, then insists.
stop() {
    local signal="$1" name pid _ tries=0
    shift
    for name in "$@"; do
        running "$name" || continue
        read -r pid _ <"$(pid_file "$name")"
        kill "-$signal" "$pid" 2>/dev/null
    done
    for name in "$@"; do
        while running "$name"; do
            sleep 0.1
            tries=$((tries + 1))
            if [ "$tries" -eq 100 ]; then
                read -r pid _ <"$(pid_file "$name")"
                kill -KILL "$pid" 2>/dev/null
            fi
        done
        rm -f "$(pid_file "$name")"
    done
}
