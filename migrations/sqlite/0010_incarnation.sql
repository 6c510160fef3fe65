-- Which catalog of its site this is: the first is 1, and each that is made from the pool is one more than the last. What it puts into the pool
-- says so, so that a gateway of an earlier one finds out that it is not the site's any more.
CREATE TABLE incarnation (
    singleton INTEGER NOT NULL PRIMARY KEY CHECK (singleton = 1),
    number    INTEGER NOT NULL CHECK (number >= 1),
    -- How many checkpoints were begun. A number is durable before anything of its checkpoint is put, and none is used again: of one that
    -- failed something may be on a node that is away.
    checkpoints INTEGER NOT NULL DEFAULT 0,
    -- Rows of `doomed` up to this number are in a checkpoint that is durable: their objects may be deleted.
    recorded_through INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO incarnation (singleton, number) VALUES (1, 1);
