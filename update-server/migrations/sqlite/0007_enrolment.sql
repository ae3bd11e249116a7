-- Tokens that let nodes enrol; only the hash is kept. A token that is over stays, so that the ids in the audit log and in
-- node_credential stay explained.
CREATE TABLE enrolment_token (
    -- The first digits of the hash.
    id           TEXT   NOT NULL PRIMARY KEY,
    hash         TEXT   NOT NULL UNIQUE,
    -- The group that it places nodes in; '' for none.
    grp          TEXT   NOT NULL,
    note         TEXT   NOT NULL,
    uses         BIGINT NOT NULL,
    uses_max     BIGINT,
    created_at   BIGINT NOT NULL,
    created_by   TEXT   NOT NULL,
    expires_at   BIGINT,
    revoked_at   BIGINT,
    last_used_at BIGINT
);

-- The token that a node came with.
ALTER TABLE node_credential ADD COLUMN enrolled_with TEXT;

-- The groups that operators, and tokens, have placed nodes in: they stand over what the nodes say.
CREATE TABLE node_group (
    node TEXT NOT NULL PRIMARY KEY,
    grp  TEXT NOT NULL
);

-- Nodes that are not heard any more. A row goes only when an operator reinstates the node, whatever else is forgotten of it.
CREATE TABLE node_revocation (
    node       TEXT   NOT NULL PRIMARY KEY,
    reason     TEXT   NOT NULL,
    revoked_at BIGINT NOT NULL,
    revoked_by TEXT   NOT NULL
);
