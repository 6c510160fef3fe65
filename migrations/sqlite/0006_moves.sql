-- Reclaim moves what is left of sparse segments to new ones.

-- Containers that chunks were left out of, and the chunks that are there: a bit for each, the lowest first, without zero bytes at the end. A batch
-- that points at another one anew is refused.
CREATE TABLE thinned (
    container BLOB NOT NULL PRIMARY KEY REFERENCES containers (id),
    present   BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- Answers alone what a segment holds and what that takes.
DROP INDEX containers_by_segment;
CREATE INDEX containers_by_segment ON containers (segment, id, length_bytes);
DROP INDEX containers_by_size;
