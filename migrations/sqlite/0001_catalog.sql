-- The catalog of a site, first schema.
--
-- Conventions
--   identities   16 bytes, made by the program, never reused
--   times        milliseconds since the Unix epoch, as the program's clock said
--   sequences    64-bit counters; 0 is "before the first"
--   booleans     0 or 1
--   blobs        `delta` and `leaf` carry their own version and checksum (docs/format.md, "Catalog blobs");
--                `directory` and `wrapped` belong to the crates that make them
--
-- The connection runs in WAL mode with synchronous=FULL: a committed transaction survives a power cut.

-- 'Carn' in ASCII: tells a catalog from any other SQLite file.
PRAGMA application_id = 1130459758;

-- The one site that this catalog is of. Absent until `cairn init` completes.
CREATE TABLE site (
    singleton      INTEGER NOT NULL PRIMARY KEY CHECK (singleton = 1),
    id             BLOB    NOT NULL,
    name           TEXT    NOT NULL,
    created_at     INTEGER NOT NULL,
    -- What the rows and blobs mean; a program refuses a higher one than it knows.
    format_version INTEGER NOT NULL
) STRICT;

-- Sums kept by every transaction that changes them, so that status never counts rows.
CREATE TABLE totals (
    singleton     INTEGER NOT NULL PRIMARY KEY CHECK (singleton = 1),
    volumes       INTEGER NOT NULL,
    segments      INTEGER NOT NULL,
    segment_bytes INTEGER NOT NULL,
    containers    INTEGER NOT NULL
) STRICT;
INSERT INTO totals (singleton, volumes, segments, segment_bytes, containers) VALUES (1, 0, 0, 0, 0);

-- Data keys, wrapped under keys that are not here. One key wrapped under two keys is two rows.
CREATE TABLE keys (
    purpose    TEXT    NOT NULL,
    key_id     BLOB    NOT NULL,
    wrapped_by BLOB    NOT NULL,
    wrapped    BLOB    NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (purpose, key_id, wrapped_by)
) STRICT;

CREATE TABLE gateways (
    id         BLOB    NOT NULL PRIMARY KEY,
    name       TEXT    NOT NULL UNIQUE,
    -- 'clean': everything was destaged, a missing log is acceptable. 'dirty': it is not.
    wal_state  TEXT    NOT NULL CHECK (wal_state IN ('clean', 'dirty')),
    created_at INTEGER NOT NULL,
    -- Batches committed by this gateway: numbers its rows in `batches`.
    batches    INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE nodes (
    id         BLOB    NOT NULL PRIMARY KEY,
    name       TEXT    NOT NULL UNIQUE,
    url        TEXT    NOT NULL,
    -- Failure domain: what fails together.
    domain     TEXT,
    state      TEXT    NOT NULL CHECK (state IN ('active', 'draining')),
    created_at INTEGER NOT NULL,
    options    TEXT    NOT NULL
) STRICT;

-- A copy-on-write tree of map versions; today one per volume.
CREATE TABLE lineages (
    id             BLOB    NOT NULL PRIMARY KEY,
    -- The last commit; the next is one more.
    last_commit    INTEGER NOT NULL,
    -- Every change through this commit is in the leaves and has no delta any more.
    folded_through INTEGER NOT NULL
) STRICT;

CREATE TABLE volumes (
    id               BLOB    NOT NULL PRIMARY KEY,
    name             TEXT    NOT NULL,
    size_bytes       INTEGER NOT NULL,
    -- 'flush' or 'always': when a write is acknowledged.
    durability       TEXT    NOT NULL CHECK (durability IN ('flush', 'always')),
    lineage          BLOB    NOT NULL UNIQUE REFERENCES lineages (id),
    compress         INTEGER NOT NULL,
    dedupe           INTEGER NOT NULL,
    read_only        INTEGER NOT NULL,
    options          TEXT    NOT NULL,
    created_at       INTEGER NOT NULL,
    -- Every write through this one is in the map.
    destaged_through INTEGER NOT NULL,
    -- 1: gone for everybody; the row and its lineage wait to be purged.
    deleted          INTEGER NOT NULL DEFAULT 0
) STRICT;
-- The name of a deleted volume is free.
CREATE UNIQUE INDEX volumes_by_name ON volumes (name) WHERE deleted = 0;
CREATE INDEX volumes_deleted ON volumes (deleted) WHERE deleted = 1;

-- Who may write a volume. A row exists from the first acquisition on.
CREATE TABLE leases (
    volume     BLOB    NOT NULL PRIMARY KEY REFERENCES volumes (id),
    -- The last owner, also after a release.
    gateway    BLOB    NOT NULL REFERENCES gateways (id),
    -- The term; grows by one at every acquisition and never falls.
    generation INTEGER NOT NULL,
    -- The term in which this gateway's unbroken ownership began.
    held_since INTEGER NOT NULL,
    -- 1: ended by its owner; nothing can be committed in it.
    released   INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;

-- Recent batches, so that a commit whose reply was lost is recognised. The last few of each gateway are kept.
CREATE TABLE batches (
    id      BLOB    NOT NULL PRIMARY KEY,
    gateway BLOB    NOT NULL REFERENCES gateways (id),
    number  INTEGER NOT NULL,
    -- One version byte (1); then per volume, in the order of the batch: 16 bytes identity, 8 bytes big-endian commit, 0 for a deleted volume.
    receipt BLOB    NOT NULL
) STRICT;
CREATE UNIQUE INDEX batches_by_gateway ON batches (gateway, number);

-- Changes of batches that are not wholly in the leaves yet: one row per batch and lineage.
CREATE TABLE deltas (
    lineage    BLOB    NOT NULL REFERENCES lineages (id),
    commit_seq INTEGER NOT NULL,
    delta      BLOB    NOT NULL,
    PRIMARY KEY (lineage, commit_seq)
) STRICT;

-- Leaves of extent maps, 16,384 blocks each. An absent leaf is all holes. A row is the leaf's state at `commit_seq`; the newest
-- counts, and an older one stays only for a snapshot that needs it.
CREATE TABLE leaves (
    lineage    BLOB    NOT NULL REFERENCES lineages (id),
    leaf       INTEGER NOT NULL,
    commit_seq INTEGER NOT NULL,
    data       BLOB    NOT NULL,
    PRIMARY KEY (lineage, leaf, commit_seq)
) STRICT;

-- Objects in the pool. A row means: the pool has acknowledged it.
CREATE TABLE segments (
    id           BLOB    NOT NULL PRIMARY KEY,
    node         BLOB    NOT NULL REFERENCES nodes (id),
    -- Object key inside the node's prefix.
    object_key   TEXT    NOT NULL,
    length_bytes INTEGER NOT NULL
) STRICT;
CREATE INDEX segments_by_node ON segments (node);

-- Where each container's sealed chunks are today. Reclaim moves them by changing this row; maps never change for it.
CREATE TABLE containers (
    id             BLOB    NOT NULL PRIMARY KEY,
    segment        BLOB    NOT NULL REFERENCES segments (id),
    segment_offset INTEGER NOT NULL,
    length_bytes   INTEGER NOT NULL,
    directory      BLOB    NOT NULL
) STRICT;
CREATE INDEX containers_by_segment ON containers (segment);
