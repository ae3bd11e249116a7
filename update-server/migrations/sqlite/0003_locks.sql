-- The reboot lock. One row per group, 'group/NAME', and one for the caps over groups, 'caps'; the document is JSON.
-- A row is changed only where its revision is still the one that was read.
CREATE TABLE reboot_lock (
    name     TEXT   NOT NULL PRIMARY KEY,
    revision BIGINT NOT NULL,
    document TEXT   NOT NULL
);

-- Where nodes stand that asked a lock: their group there and their zone ('' for none), for limits in percent.
CREATE TABLE lock_node (
    node      TEXT   NOT NULL PRIMARY KEY,
    grp       TEXT   NOT NULL,
    zone      TEXT   NOT NULL,
    last_seen BIGINT NOT NULL
);
CREATE INDEX lock_node_grp ON lock_node (grp);

-- The hash of each node's own secret, from the first time that it was heard: it binds the id.
CREATE TABLE node_credential (
    node     TEXT   NOT NULL PRIMARY KEY,
    hash     TEXT   NOT NULL,
    bound_at BIGINT NOT NULL
);
