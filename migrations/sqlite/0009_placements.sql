-- Segments in several shards on several nodes; repair.
--
-- Applied with foreign keys off. Tables whose columns or checks change are made anew under another name, filled, and given the old name: so
-- the references of other tables to them stay (https://www.sqlite.org/lang_altertable.html#otheralter).

-- What holds for the pool as a whole.
CREATE TABLE pool (
    singleton INTEGER NOT NULL PRIMARY KEY CHECK (singleton = 1),
    -- How new segments are protected: 'single', 'replica:N', 'ec:K+M'.
    profile   TEXT    NOT NULL
) STRICT;
INSERT INTO pool (singleton, profile) VALUES (1, 'single');

CREATE TABLE nodes_9 (
    id             BLOB    NOT NULL PRIMARY KEY,
    name           TEXT    NOT NULL UNIQUE,
    url            TEXT    NOT NULL,
    -- Failure domain: what fails together.
    domain         TEXT,
    -- 'failed': declared; its shards count as lost.
    state          TEXT    NOT NULL CHECK (state IN ('active', 'draining', 'failed')),
    created_at     INTEGER NOT NULL,
    options        TEXT    NOT NULL,
    -- NULL: not known, not limited.
    capacity_bytes INTEGER,
    -- Sums over its rows in `shards`, kept by every transaction that changes those.
    shards         INTEGER NOT NULL DEFAULT 0,
    shard_bytes    INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO nodes_9 (id, name, url, domain, state, created_at, options, shards, shard_bytes)
SELECT n.id, n.name, n.url, n.domain, n.state, n.created_at, n.options, coalesce(s.shards, 0), coalesce(s.bytes, 0)
FROM nodes n LEFT JOIN (SELECT node, count(*) AS shards, sum(length_bytes) AS bytes FROM segments GROUP BY node) s ON s.node = n.id;

-- Shards that are somewhere; one that is missing has no row.
CREATE TABLE shards (
    segment BLOB    NOT NULL REFERENCES segments (id),
    -- Its number in the profile of the segment.
    shard   INTEGER NOT NULL,
    node    BLOB    NOT NULL REFERENCES nodes (id),
    -- 0: put with the segment. Part of the object's key.
    tag     INTEGER NOT NULL,
    PRIMARY KEY (segment, shard)
) STRICT, WITHOUT ROWID;
INSERT INTO shards (segment, shard, node, tag) SELECT id, 0, node, 0 FROM segments ORDER BY id;
-- Shards of one segment are on different nodes.
CREATE UNIQUE INDEX shards_by_node ON shards (node, segment);

-- Objects in the pool. A row means: the pool has acknowledged enough of its shards.
CREATE TABLE segments_9 (
    id           BLOB    NOT NULL PRIMARY KEY,
    -- Object key inside a node's prefix; keys of shards are made of it.
    object_key   TEXT    NOT NULL,
    length_bytes INTEGER NOT NULL,
    profile      TEXT    NOT NULL,
    -- Shards of the profile that have no row.
    missing      INTEGER NOT NULL CHECK (missing >= 0),
    -- Shards that are there beyond those that it takes to read.
    spare        INTEGER NOT NULL CHECK (spare >= 0)
) STRICT;
INSERT INTO segments_9 (id, object_key, length_bytes, profile, missing, spare)
SELECT id, object_key, length_bytes, 'single', 0, 0 FROM segments;
DROP TABLE segments;
ALTER TABLE segments_9 RENAME TO segments;
CREATE INDEX segments_degraded ON segments (id) WHERE missing > 0;
CREATE INDEX segments_by_profile ON segments (profile, id);

-- One row for each object of a shard. Numbers are not used again: a deletion that is done again cannot mean another object.
CREATE TABLE doomed_9 (
    id           INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    -- The segment that it was of.
    segment      BLOB    NOT NULL,
    node         BLOB    NOT NULL REFERENCES nodes (id),
    object_key   TEXT    NOT NULL,
    length_bytes INTEGER NOT NULL
) STRICT;
INSERT INTO doomed_9 (segment, node, object_key, length_bytes)
SELECT segment, node, object_key, length_bytes FROM doomed ORDER BY segment;
DROP TABLE doomed;
ALTER TABLE doomed_9 RENAME TO doomed;
CREATE UNIQUE INDEX doomed_objects ON doomed (node, object_key);

DROP TABLE nodes;
ALTER TABLE nodes_9 RENAME TO nodes;

-- Of the segments: some shard is missing; and one more loss would lose data.
ALTER TABLE totals ADD COLUMN degraded_segments INTEGER NOT NULL DEFAULT 0;
ALTER TABLE totals ADD COLUMN at_risk_segments INTEGER NOT NULL DEFAULT 0;
