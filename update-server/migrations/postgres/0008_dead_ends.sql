-- Dead ends, and what nodes have in quarantine, as in ../sqlite.
ALTER TABLE release ADD COLUMN dead_end TEXT;
ALTER TABLE channel ADD COLUMN to_dead_end BIGINT NOT NULL DEFAULT 0;
ALTER TABLE node ADD COLUMN quarantine TEXT;
