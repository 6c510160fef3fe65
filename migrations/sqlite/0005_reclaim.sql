-- Reclaim: containers that nothing points at are closed, looked at again, removed; objects without a container are deleted from the pool.

-- Containers that no batch may point at anew, because a pass is about to remove them. Beside the containers: their rows, with their
-- directories, are not rewritten for it.
CREATE TABLE closed (
    container BLOB NOT NULL PRIMARY KEY REFERENCES containers (id),
    pass      BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX closed_by_pass ON closed (pass);

-- Answers alone which containers there are and what they take.
CREATE INDEX containers_by_size ON containers (id, length_bytes);

-- Objects in the pool that are no segment any more. A row goes when the store has deleted the object.
CREATE TABLE doomed (
    segment      BLOB    NOT NULL PRIMARY KEY,
    node         BLOB    NOT NULL REFERENCES nodes (id),
    object_key   TEXT    NOT NULL,
    length_bytes INTEGER NOT NULL
) STRICT;
CREATE INDEX doomed_by_node ON doomed (node);
