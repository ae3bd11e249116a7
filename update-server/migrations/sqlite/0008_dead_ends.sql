-- Why a release is a dead end, as the targets metadata says; NULL where it is none.
ALTER TABLE release ADD COLUMN dead_end TEXT;
-- Whether the channel's nodes go to its release although it is a dead end.
ALTER TABLE channel ADD COLUMN to_dead_end BIGINT NOT NULL DEFAULT 0;
-- The versions that the node does not take, with a space between two, oldest first; NULL where its engine does not say.
ALTER TABLE node ADD COLUMN quarantine TEXT;
