-- Dedupe domains; what volumes map, what became of the bytes written to them, and what storing those took.
--
-- Applied with foreign keys off: only so does SQLite add a column that refers to a table and has a default.
--
-- Rows of the time before do not say how many blocks a leaf maps, nor what a container's chunks were before they were compressed:
-- those columns are NULL there, and the program takes the number from the blob when it needs it. The sums over them are made
-- once, when the catalog is opened for the first time with this schema.

-- What is sealed under one key, and where equal blocks are stored once.
CREATE TABLE domains (
    id         BLOB    NOT NULL PRIMARY KEY,
    name       TEXT    NOT NULL UNIQUE,
    encryption TEXT    NOT NULL CHECK (encryption IN ('aes-256-gcm', 'off')),
    created_at INTEGER NOT NULL
) STRICT;
INSERT INTO domains (id, name, encryption, created_at)
VALUES (zeroblob(16), 'default', 'aes-256-gcm', coalesce((SELECT created_at FROM site), 0));

ALTER TABLE volumes ADD COLUMN domain BLOB NOT NULL DEFAULT x'00000000000000000000000000000000' REFERENCES domains (id);
-- Blocks that the leaves map, in bytes: the newest version of each leaf.
ALTER TABLE volumes ADD COLUMN logical_bytes INTEGER NOT NULL DEFAULT 0;
-- Sums over the volume's batches: written = zero + shared + unique, and what the unique ones take.
ALTER TABLE volumes ADD COLUMN written_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE volumes ADD COLUMN zero_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE volumes ADD COLUMN shared_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE volumes ADD COLUMN unique_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE volumes ADD COLUMN stored_bytes INTEGER NOT NULL DEFAULT 0;

ALTER TABLE containers ADD COLUMN domain BLOB NOT NULL DEFAULT x'00000000000000000000000000000000' REFERENCES domains (id);
-- Plaintext of all its chunks. NULL: as the directory says.
ALTER TABLE containers ADD COLUMN raw_bytes INTEGER;
-- Answers alone whether a batch may point at a container: the rows, with their directories, are not read for it.
CREATE INDEX containers_by_domain ON containers (domain, id);

-- Blocks that the leaf maps. NULL: as the blob says.
ALTER TABLE leaves ADD COLUMN blocks INTEGER;

-- Of the volumes that are not deleted. NULL: the sums over the rows of the time before are not made yet.
ALTER TABLE totals ADD COLUMN logical_bytes INTEGER;
ALTER TABLE totals ADD COLUMN container_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE totals ADD COLUMN container_raw_bytes INTEGER NOT NULL DEFAULT 0;
UPDATE totals SET container_bytes = (SELECT coalesce(sum(length_bytes), 0) FROM containers);
