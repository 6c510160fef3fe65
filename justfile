# Every task of the project. CI calls only these and tests/run.

set shell := ["bash", "-euo", "pipefail", "-c"]

# List the recipes.
default:
    @just --list

# Formatting, lints, dependency policy.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    cargo deny check

# Everything that CI runs, tools included.
test:
    tests/run

# Unit, property and conformance tests only: fast.
unit:
    cargo nextest run --workspace --exclude system-tests

# End-to-end tests of the release binary; ROUNDS of SIGKILL.
e2e ROUNDS="5":
    tests/install-tools.sh
    cargo build --release --bin cairn
    CAIRN_E2E_ROUNDS={{ROUNDS}} cargo nextest run --release -p system-tests --no-fail-fast

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

# A real Ceph RGW for development, N endpoints.
dev-up N="1":
    minio-dev/up {{N}}

dev-down:
    minio-dev/down

# API documentation.
doc:
    cargo doc --workspace --no-deps
