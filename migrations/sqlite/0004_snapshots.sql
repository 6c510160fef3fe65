-- Snapshots, clones and reverts: lineages form a tree, and old versions of leaves stay for whoever shows them.
--
-- What a point (lineage, commit) shows of a leaf is the newest version through the commit that the lineage has; if it has none, what the
-- lineage's parent point shows. A version with no blocks is one too: it hides what is below it.
--
-- A version is needed while a pin lies in [its commit, the commit of the lineage's next newer version of that leaf). Pins of a lineage are
-- its snapshots, the parent points of its children, and, beyond every commit, the head of a volume that is not deleted. Versions through
-- `folded_through` are never written again.

-- Where the lineage branched off; NULL for one that began empty. Everything through that commit is in the parent's leaves.
ALTER TABLE lineages ADD COLUMN parent BLOB REFERENCES lineages (id);
ALTER TABLE lineages ADD COLUMN parent_commit INTEGER;
CREATE INDEX lineages_by_parent ON lineages (parent, parent_commit);

-- Passes over the leaves that are still to be made for what may not be needed any more: 2 when something more was let go of during one.
ALTER TABLE lineages ADD COLUMN prune_passes INTEGER NOT NULL DEFAULT 0 CHECK (prune_passes BETWEEN 0 AND 2);
-- The last row that the pass has looked at; -1 before the first.
ALTER TABLE lineages ADD COLUMN pruned_leaf INTEGER NOT NULL DEFAULT -1;
ALTER TABLE lineages ADD COLUMN pruned_commit INTEGER NOT NULL DEFAULT -1;
CREATE INDEX lineages_to_prune ON lineages (prune_passes) WHERE prune_passes > 0;

CREATE TABLE snapshots (
    id            BLOB    NOT NULL PRIMARY KEY,
    volume        BLOB    NOT NULL REFERENCES volumes (id),
    name          TEXT    NOT NULL,
    -- What it shows: the volume's lineage then, right after the commit.
    lineage       BLOB    NOT NULL REFERENCES lineages (id),
    commit_seq    INTEGER NOT NULL,
    size_bytes    INTEGER NOT NULL,
    created_at    INTEGER NOT NULL,
    -- Blocks that it maps, in bytes. NULL: the leaves do not have everything through its commit yet.
    logical_bytes INTEGER
) STRICT;
CREATE UNIQUE INDEX snapshots_by_name ON snapshots (volume, name);
CREATE INDEX snapshots_by_point ON snapshots (lineage, commit_seq);
CREATE INDEX snapshots_unsettled ON snapshots (lineage, commit_seq) WHERE logical_bytes IS NULL;

-- Answers alone which version a point shows, and how much that maps: the rows, with their blobs, are not read for it.
CREATE INDEX leaves_by_version ON leaves (lineage, leaf, commit_seq, blocks);

ALTER TABLE totals ADD COLUMN snapshots INTEGER NOT NULL DEFAULT 0;
