-- Rollouts: each channel's document and policy (JSON), and the nodes that were let go in each rollout.
CREATE TABLE rollout_policy (
    channel  TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    document TEXT NOT NULL
);

CREATE TABLE rollout (
    channel  TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    document TEXT NOT NULL
);

CREATE TABLE rollout_grant (
    channel    TEXT COLLATE "C" NOT NULL,
    -- Counts the rollouts of the channel.
    number     BIGINT NOT NULL,
    node       TEXT COLLATE "C" NOT NULL,
    -- The rollout's release, or one to pass through on the way.
    version    TEXT COLLATE "C" NOT NULL,
    grp        TEXT COLLATE "C" NOT NULL,
    -- The stage that was open.
    stage      BIGINT NOT NULL,
    granted_at BIGINT NOT NULL,
    phase      TEXT COLLATE "C" NOT NULL,
    phase_at   BIGINT NOT NULL,
    -- When the node failed last in this rollout; a new grant does not take it back, a confirmation does.
    failed_at  BIGINT,
    PRIMARY KEY (channel, number, node, version)
);
CREATE INDEX rollout_grant_open ON rollout_grant (channel, grp, phase);
CREATE INDEX rollout_grant_at ON rollout_grant (channel, granted_at);
CREATE INDEX rollout_grant_failed ON rollout_grant (channel, number, failed_at) WHERE failed_at IS NOT NULL;
CREATE INDEX rollout_grant_node ON rollout_grant (node, version, granted_at);
