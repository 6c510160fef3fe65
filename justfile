# Every task of the project. CI calls only these and tests/run.

set shell := ["bash", "-euo", "pipefail", "-c"]

# List the recipes.
default:
    @just --list

# Formatting, lints, dependency policy.
check:
    cargo fmt --all --check
    cargo clippy --release --workspace --all-targets --locked -- -D warnings
    cargo deny check

# Everything that CI runs, tools included.
test:
    tests/run

# Unit, property and conformance tests only: fast.
unit:
    cargo nextest run --workspace --exclude system-tests

# One seed of the simulation, or the usual seeds and the planted bugs. CAIRN_SIM_SEEDS=N for more.
sim SEED="":
    {{ if SEED == "" { "" } else { "CAIRN_SIM_SEEDS=1 CAIRN_SIM_FIRST_SEED=" + SEED } }} \
        cargo nextest run --release --workspace --test seeds {{ if SEED == "" { "--test planted --features cairn-sim/planted-bugs" } else { "-E 'test(every_promise)'" } }}

# End-to-end tests of the release binary; ROUNDS of SIGKILL.
e2e ROUNDS="5":
    tests/install-tools.sh
    cargo build --release --bin cairn
    CAIRN_E2E_ROUNDS={{ROUNDS}} cargo nextest run --release -p system-tests --no-fail-fast

# ROUNDS of crashes of all kinds, mixed: SIGKILL, SIGSTOP, store away, disk and pool full, power cuts. Needs root.
crashes ROUNDS="60":
    tests/install-tools.sh
    cargo build --release --bin cairn
    CAIRN_E2E_CRASHES={{ROUNDS}} cargo nextest run --release -p system-tests --no-capture crash::kinds::no_mixture

# COUNT snapshots under load, some of them deleted, cloned, reverted to, while reclaim runs: all bit for bit as at their moment.
snapshots COUNT="200":
    tests/install-tools.sh
    cargo build --release --bin cairn
    CAIRN_E2E_SNAPSHOTS={{COUNT}} cargo nextest run --release -p system-tests --no-capture every_snapshot_stays

# ROUNDS of SIGKILL with writers, passes of reclaim, snapshots, deletions, clones and reverts at once.
kills ROUNDS="100":
    tests/install-tools.sh
    cargo build --release --bin cairn
    CAIRN_E2E_ROUNDS={{ROUNDS}} cargo nextest run --release -p system-tests --no-capture reclaim::kills

# Fuzz one target, or `all`, for SECONDS; see docs/testing.md.
fuzz TARGET="all" SECONDS="60":
    CAIRN_FUZZ_SECONDS={{SECONDS}} tests/fuzz/run $([ {{TARGET}} = all ] || echo {{TARGET}})

# The same under the address sanitizer, with leak detection; builds everything once more.
fuzz-asan TARGET="all" SECONDS="60":
    CAIRN_FUZZ_SECONDS={{SECONDS}} tests/fuzz/run --asan --leaks $([ {{TARGET}} = all ] || echo {{TARGET}})

# Write the seeds of the fuzz targets again, after their inputs changed meaning.
fuzz-seeds:
    CAIRN_FUZZ_TARGET=seeds:tests/fuzz/corpus cargo run --release -p cairn-fuzz --bin fuzz
    tests/fuzz/qemu-seeds

# Compare with qemu-nbd and nbdkit; writes docs/performance.md. `just bench --quick` for a smoke run.
bench *ARGS:
    tests/install-tools.sh
    cargo build --release --bin cairn
    cargo build --release -p cairn-segment-writer --example cpu_limits
    cargo run --release -p system-tests --bin perf -- {{ARGS}}
    just bench-pool

# What erasure coding costs beside a pool of one node, and reads with two of six nodes gone; `just bench-pool --help` for the settings.
bench-pool *ARGS:
    tests/install-tools.sh
    cargo build --release --bin cairn
    cargo build --release -p cairn-segment-writer --example coding
    tests/perf/pool {{ARGS}}

# What random overwrites cost in space and in writes, and what reclaim costs the guest; `just overwrites --help` for the settings.
overwrites *ARGS:
    tests/install-tools.sh
    cargo build --release --bin cairn
    tests/perf/overwrites {{ARGS}}

# Whether snapshots and clones of 10 TiB with 1,000 snapshots are felt by a 4 KiB load; `just snapshot-pauses --help` for the settings.
snapshot-pauses *ARGS:
    tests/install-tools.sh
    cargo build --release --bin cairn
    tests/perf/snapshots {{ARGS}}

# Everything at once for HOURS on a real Ceph RGW, memory and files watched; results in target/soak. `just soak 0.05` for a smoke run.
soak HOURS="1" *ARGS:
    tests/install-tools.sh
    cargo build --release --bin cairn
    cargo run --release -p system-tests --bin soak -- {{HOURS}} {{ARGS}}

# ROUNDS in which two of six real servers die and lose their disks while fio verifies; `--replica` for replica:3, `--folders` for directories.
pool-rounds ROUNDS="20" *ARGS:
    tests/install-tools.sh
    cargo build --release --bin cairn
    cargo run --release -p system-tests --bin pool-rounds -- {{ROUNDS}} {{ARGS}}

# A real Ceph RGW for development, N endpoints.
dev-up N="1":
    minio-dev/up {{N}}

dev-down:
    minio-dev/down

# API documentation.
doc:
    cargo doc --workspace --no-deps
