-- What stays of events after they are deleted: how many there were a day. An event is counted when it is stored, in the same
-- change. Nodes name what they like, so a channel and a release that this server does not know are counted under ''.
CREATE TABLE event_count (
    -- Its begin (UTC).
    day     BIGINT NOT NULL,
    channel TEXT   NOT NULL,
    version TEXT   NOT NULL,
    kind    TEXT   NOT NULL,
    events  BIGINT NOT NULL,
    PRIMARY KEY (day, channel, version, kind)
);
INSERT INTO event_count (day, channel, version, kind, events)
SELECT received_at / 86400000000 * 86400000000 AS of_day,
    COALESCE((SELECT channel.channel FROM channel JOIN node ON node.channel = channel.channel
        WHERE node.node = event.node), '') AS of_channel,
    COALESCE((SELECT MAX(version) FROM release WHERE version = document ->> '$.version'), '') AS of_version,
    document ->> '$.kind' AS of_kind, COUNT(*)
FROM event GROUP BY of_day, of_channel, of_version, of_kind;

-- How many nodes ran which version, hour by hour.
CREATE TABLE version_count (
    -- Its begin.
    hour    BIGINT NOT NULL,
    channel TEXT   NOT NULL,
    -- '' for all but the most frequent together.
    version TEXT   NOT NULL,
    nodes   BIGINT NOT NULL,
    PRIMARY KEY (hour, channel, version)
);
CREATE INDEX version_count_channel ON version_count (channel, hour);

-- Who is told of what happens, and what is still to be told. A delivery is written in the change that it tells of.
CREATE TABLE webhook (
    name       TEXT NOT NULL PRIMARY KEY,
    url        TEXT   NOT NULL,
    -- In full: signing needs it.
    secret     TEXT   NOT NULL,
    -- The kinds of events, with commas around each.
    events     TEXT   NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE TABLE webhook_delivery (
    id         INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    webhook    TEXT NOT NULL,
    kind       TEXT   NOT NULL,
    body       TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    attempts   BIGINT NOT NULL,
    -- When it is sent next; a server that sends it moves this ahead first.
    due_at     BIGINT NOT NULL,
    -- When it was given up, 0 before.
    given_up   BIGINT NOT NULL,
    problem    TEXT   NOT NULL
);
CREATE INDEX webhook_delivery_due ON webhook_delivery (given_up, due_at);
-- What is told once though it goes on: metadata that expires.
CREATE TABLE webhook_told (
    subject TEXT NOT NULL PRIMARY KEY,
    at      BIGINT NOT NULL
);
