-- The order in which grants were given and what an operator has forgiven no longer depend on the clock.
ALTER TABLE rollout_grant ADD COLUMN given BIGINT NOT NULL DEFAULT 0;
UPDATE rollout_grant SET given = (SELECT COUNT(*) FROM rollout_grant AS other WHERE other.node = rollout_grant.node
    AND (other.granted_at, other.channel, other.number, other.version)
     <= (rollout_grant.granted_at, rollout_grant.channel, rollout_grant.number, rollout_grant.version));

-- How often the rollout had been resumed when the node failed last; a new grant does not take it back, a confirmation does.
ALTER TABLE rollout_grant ADD COLUMN failed_in BIGINT;
-- And when it confirmed its grant's version.
ALTER TABLE rollout_grant ADD COLUMN confirmed_in BIGINT;
-- Rollouts count their resumptions from 0 on now. What was forgiven before is from before that.
UPDATE rollout_grant SET failed_in = CASE WHEN failed_at / 1000 > COALESCE((SELECT
        CAST(round((julianday(json_extract(document, '$.counted_from')) - 2440587.5) * 86400000.0) AS INTEGER)
        FROM rollout WHERE rollout.channel = rollout_grant.channel), -1) THEN 0 ELSE -1 END
    WHERE failed_at IS NOT NULL;
UPDATE rollout_grant SET confirmed_in = CASE WHEN phase_at / 1000 > COALESCE((SELECT
        CAST(round((julianday(json_extract(document, '$.counted_from')) - 2440587.5) * 86400000.0) AS INTEGER)
        FROM rollout WHERE rollout.channel = rollout_grant.channel), -1) THEN 0 ELSE -1 END
    WHERE phase = 'confirmed';

DROP INDEX rollout_grant_failed;
DROP INDEX rollout_grant_node;
ALTER TABLE rollout_grant DROP COLUMN failed_at;
CREATE INDEX rollout_grant_failed ON rollout_grant (channel, number, failed_in) WHERE failed_in IS NOT NULL;
CREATE INDEX rollout_grant_node ON rollout_grant (node, given);
