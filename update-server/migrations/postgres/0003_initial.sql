-- What the server keeps, in PostgreSQL. The tables are those of ../sqlite, in which the columns are explained; a migration
-- of one number makes the same tables in both databases, and PostgreSQL begins at 3. What differs: BYTEA, identity columns,
-- the audit log's triggers, and COLLATE "C", so that names are compared and sorted byte by byte, as SQLite does.
CREATE TABLE document (
    name      TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
    role      TEXT   COLLATE "C" NOT NULL,
    version   BIGINT NOT NULL,
    expires   BIGINT NOT NULL,
    sha256    TEXT   NOT NULL,
    bytes     BYTEA  NOT NULL,
    stored_at BIGINT NOT NULL
);
CREATE INDEX document_role ON document (role, version);

CREATE TABLE target (
    name      TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
    sha256    TEXT   NOT NULL,
    bytes     BYTEA  NOT NULL,
    stored_at BIGINT NOT NULL
);

CREATE TABLE release (
    version              TEXT   COLLATE "C" NOT NULL,
    arch                 TEXT   COLLATE "C" NOT NULL,
    target               TEXT   COLLATE "C" NOT NULL REFERENCES target (name),
    allow_downgrade_from TEXT,
    pushed_at            BIGINT NOT NULL,
    PRIMARY KEY (version, arch)
);

CREATE TABLE channel (
    channel    TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
    version    TEXT   NOT NULL,
    changed_at BIGINT NOT NULL,
    changed_by TEXT   NOT NULL
);

CREATE TABLE token (
    name       TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
    hash       TEXT   COLLATE "C" NOT NULL UNIQUE,
    role       TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    revoked_at BIGINT
);

-- The number comes with the row (store/audit.rs): one from a sequence would leave a gap where a change came to nothing, and a
-- gap in this log must mean that somebody took a row away.
CREATE TABLE audit (
    seq     BIGINT NOT NULL PRIMARY KEY,
    at      BIGINT NOT NULL,
    actor   TEXT   NOT NULL,
    action  TEXT   NOT NULL,
    subject TEXT   NOT NULL,
    detail  TEXT   NOT NULL
);
CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is append-only';
END
$$;
CREATE TRIGGER audit_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();

CREATE TABLE node (
    node      TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
    channel   TEXT   NOT NULL,
    grp       TEXT   COLLATE "C" NOT NULL,
    arch      TEXT   NOT NULL,
    version   TEXT   NOT NULL,
    slot      TEXT   NOT NULL,
    state     TEXT   NOT NULL,
    boot_id   TEXT   NOT NULL,
    last_seen BIGINT NOT NULL
);
CREATE INDEX node_last_seen ON node (last_seen);

CREATE TABLE event (
    id          BIGINT NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    node        TEXT   COLLATE "C" NOT NULL,
    seq         BIGINT NOT NULL,
    at          TEXT   COLLATE "C" NOT NULL,
    document    TEXT   NOT NULL,
    received_at BIGINT NOT NULL,
    evidence    TEXT   NOT NULL DEFAULT '',
    UNIQUE (node, seq, at)
);
CREATE INDEX event_node ON event (node, id);
CREATE INDEX event_evidence ON event (node, id) WHERE evidence <> '';

CREATE TABLE reboot_lock (
    name     TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
    revision BIGINT NOT NULL,
    document TEXT   NOT NULL
);

CREATE TABLE lock_node (
    node      TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
    grp       TEXT   COLLATE "C" NOT NULL,
    zone      TEXT   COLLATE "C" NOT NULL,
    last_seen BIGINT NOT NULL
);
CREATE INDEX lock_node_grp ON lock_node (grp);

CREATE TABLE node_credential (
    node     TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
    hash     TEXT   NOT NULL,
    bound_at BIGINT NOT NULL
);
