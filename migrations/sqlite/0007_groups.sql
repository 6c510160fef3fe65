-- Protection groups: which volumes are snapshotted together and when, what ran, what is locked; and events that people should know of.

CREATE TABLE protection_groups (
    id              BLOB    NOT NULL PRIMARY KEY,
    name            TEXT    NOT NULL UNIQUE,
    -- JSON with a version of its own, read and written by whoever runs groups.
    policy          TEXT    NOT NULL,
    paused          INTEGER NOT NULL CHECK (paused IN (0, 1)),
    created_at      INTEGER NOT NULL,
    -- Instants of the schedule up to this one are dealt with: none of them is run again.
    handled_through INTEGER NOT NULL
) STRICT;

-- Runs. One that has not ended is an intent: it is written before its snapshots are taken, with their identities, so that a later start
-- finds out what became of them.
CREATE TABLE group_runs (
    -- The order in which they began, whatever the clock said.
    seq         INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    id          BLOB    NOT NULL UNIQUE,
    group_id    BLOB    NOT NULL REFERENCES protection_groups (id),
    gateway     BLOB    NOT NULL REFERENCES gateways (id),
    -- What its snapshots' names end with.
    label       TEXT    NOT NULL,
    -- The instant of the schedule; NULL for a run that somebody asked for.
    planned     INTEGER,
    -- Instants before that one that had no run.
    missed      INTEGER NOT NULL,
    began_at    INTEGER NOT NULL,
    ended_at    INTEGER,
    outcome     TEXT CHECK (outcome IN ('complete', 'partial', 'failed', 'nothing')),
    error       TEXT,
    -- What retention deleted after it, and what kept it from deleting more.
    pruned      INTEGER NOT NULL DEFAULT 0,
    prune_error TEXT,
    CHECK ((ended_at IS NULL) = (outcome IS NULL))
) STRICT;
CREATE UNIQUE INDEX group_runs_by_label ON group_runs (group_id, label);
CREATE INDEX group_runs_by_group ON group_runs (group_id, seq);
CREATE INDEX group_runs_unfinished ON group_runs (seq) WHERE ended_at IS NULL;

-- The volumes of a run and their snapshots. A snapshot is known here before the log has it, and in the log alone for a while.
CREATE TABLE group_members (
    run           INTEGER NOT NULL REFERENCES group_runs (seq) ON DELETE CASCADE,
    snapshot      BLOB    NOT NULL,
    volume        BLOB    NOT NULL,
    volume_name   TEXT    NOT NULL,
    snapshot_name TEXT    NOT NULL,
    state         TEXT    NOT NULL CHECK (state IN ('planned', 'taken', 'failed', 'unknown', 'deleted')),
    error         TEXT,
    PRIMARY KEY (run, snapshot)
) STRICT;
CREATE INDEX group_members_by_snapshot ON group_members (snapshot);
CREATE INDEX group_members_by_volume ON group_members (volume);

-- Snapshots that nobody can delete before a time, nor their volume. A row may be there before its snapshot is, so that there is no moment at
-- which a snapshot is there without it; and it outlives the group.
CREATE TABLE snapshot_locks (
    snapshot BLOB    NOT NULL PRIMARY KEY,
    volume   BLOB    NOT NULL,
    until    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX snapshot_locks_by_volume ON snapshot_locks (volume, until);

-- What people should know of; the oldest of a kind go.
CREATE TABLE events (
    seq     INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    at      INTEGER NOT NULL,
    kind    TEXT    NOT NULL,
    subject TEXT    NOT NULL,
    text    TEXT    NOT NULL
) STRICT;
CREATE INDEX events_by_kind ON events (kind, seq);
