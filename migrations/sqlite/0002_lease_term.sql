-- How long a lease lasts without renewal, by its owner's word: whoever wants to take it must have watched it unrenewed for that long.
-- Leases of the time before lasted 30 seconds.
ALTER TABLE leases ADD COLUMN term_ms INTEGER NOT NULL DEFAULT 30000;
