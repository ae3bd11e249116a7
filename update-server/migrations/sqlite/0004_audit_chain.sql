-- Each entry's hash covers the entry and the hash before it (store/audit.rs), so that no entry can be changed or taken out
-- without changing all that follow. NULL until it is computed, which the database cannot do: once for each entry, and that
-- is the one change of an entry that is allowed.
ALTER TABLE audit ADD COLUMN hash TEXT;
DROP TRIGGER audit_is_append_only_update;
CREATE TRIGGER audit_is_append_only_update BEFORE UPDATE ON audit
WHEN OLD.hash IS NOT NULL OR NEW.hash IS NULL OR OLD.seq <> NEW.seq OR OLD.at <> NEW.at OR OLD.actor <> NEW.actor
  OR OLD.action <> NEW.action OR OLD.subject <> NEW.subject OR OLD.detail <> NEW.detail
BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;
