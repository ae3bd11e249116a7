-- Rollouts: each channel's document and policy (JSON), and the nodes that were let go in each rollout.
CREATE TABLE rollout_policy (
    channel  TEXT NOT NULL PRIMARY KEY,
    document TEXT NOT NULL
);

CREATE TABLE rollout (
    channel  TEXT NOT NULL PRIMARY KEY,
    document TEXT NOT NULL
);

CREATE TABLE rollout_grant (
    channel    TEXT NOT NULL,
    -- Counts the rollouts of the channel.
    number     BIGINT NOT NULL,
    node       TEXT NOT NULL,
    -- The rollout's release, or one to pass through on the way.
    version    TEXT NOT NULL,
    grp        TEXT NOT NULL,
    -- The stage that was open.
    stage      BIGINT NOT NULL,
    granted_at BIGINT NOT NULL,
    phase      TEXT NOT NULL,
    phase_at   BIGINT NOT NULL,
    PRIMARY KEY (channel, number, node, version)
);
CREATE INDEX rollout_grant_phase ON rollout_grant (channel, number, phase, phase_at);
CREATE INDEX rollout_grant_at ON rollout_grant (channel, number, granted_at);
CREATE INDEX rollout_grant_node ON rollout_grant (node, version, granted_at);
