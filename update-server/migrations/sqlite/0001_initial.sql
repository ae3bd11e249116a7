-- What the server keeps. Times are microseconds since 1970 (UTC), digests 64 hexadecimal digits. The statements keep
-- to what SQLite and PostgreSQL share, but for the triggers and BLOB.

-- Signed metadata, byte for byte, by the name under which it is served: 'timestamp.json', '3.targets.json'.
CREATE TABLE document (
    name      TEXT   NOT NULL PRIMARY KEY,
    role      TEXT   NOT NULL,
    version   BIGINT NOT NULL,
    expires   BIGINT NOT NULL,
    sha256    TEXT   NOT NULL,
    bytes     BLOB   NOT NULL,
    stored_at BIGINT NOT NULL
);
CREATE INDEX document_role ON document (role, version);

-- Target files, byte for byte, by their consistent-snapshot name: 'releases/1.1.0/x86-64/<sha256>.manifest.json'.
CREATE TABLE target (
    name      TEXT   NOT NULL PRIMARY KEY,
    sha256    TEXT   NOT NULL,
    bytes     BLOB   NOT NULL,
    stored_at BIGINT NOT NULL
);

-- The releases that the current targets metadata names.
CREATE TABLE release (
    version              TEXT   NOT NULL,
    arch                 TEXT   NOT NULL,
    target               TEXT   NOT NULL REFERENCES target (name),
    allow_downgrade_from TEXT,
    pushed_at            BIGINT NOT NULL,
    PRIMARY KEY (version, arch)
);

CREATE TABLE channel (
    channel    TEXT   NOT NULL PRIMARY KEY,
    version    TEXT   NOT NULL,
    changed_at BIGINT NOT NULL,
    changed_by TEXT   NOT NULL
);

-- Only the hash of a token is kept. A revoked token stays, so that the audit log's names stay explained.
CREATE TABLE token (
    name       TEXT   NOT NULL PRIMARY KEY,
    hash       TEXT   NOT NULL UNIQUE,
    role       TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    revoked_at BIGINT
);

CREATE TABLE audit (
    seq     INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    at      BIGINT  NOT NULL,
    actor   TEXT    NOT NULL,
    action  TEXT    NOT NULL,
    subject TEXT    NOT NULL,
    detail  TEXT    NOT NULL
);
CREATE TRIGGER audit_is_append_only_update BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;
CREATE TRIGGER audit_is_append_only_delete BEFORE DELETE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;

-- What each node said at its last check.
CREATE TABLE node (
    node      TEXT   NOT NULL PRIMARY KEY,
    channel   TEXT   NOT NULL,
    grp       TEXT   NOT NULL,
    arch      TEXT   NOT NULL,
    version   TEXT   NOT NULL,
    slot      TEXT   NOT NULL,
    state     TEXT   NOT NULL,
    boot_id   TEXT   NOT NULL,
    last_seen BIGINT NOT NULL
);
CREATE INDEX node_last_seen ON node (last_seen);

-- An event is known by its node, number and time: sent twice it is stored once, while a node that lost its state and
-- counts from 1 again is still heard.
CREATE TABLE event (
    id          INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    node        TEXT    NOT NULL,
    seq         BIGINT  NOT NULL,
    at          TEXT    NOT NULL,
    document    TEXT    NOT NULL,
    received_at BIGINT  NOT NULL,
    UNIQUE (node, seq, at)
);
CREATE INDEX event_node ON event (node, id);
