-- Whose space: finds the versions of leaves that a lineage got between two of its pins, however many leaves it has.
CREATE INDEX leaves_by_commit ON leaves (lineage, commit_seq, leaf);
