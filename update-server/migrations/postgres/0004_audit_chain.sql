-- Hashes of the audit log's entries, as in ../sqlite.
ALTER TABLE audit ADD COLUMN hash TEXT;
DROP TRIGGER audit_is_append_only ON audit;
CREATE TRIGGER audit_is_append_only BEFORE DELETE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();
CREATE TRIGGER audit_is_append_only_update BEFORE UPDATE ON audit FOR EACH ROW
    WHEN (OLD.hash IS NOT NULL OR NEW.hash IS NULL OR OLD.seq <> NEW.seq OR OLD.at <> NEW.at OR OLD.actor <> NEW.actor
      OR OLD.action <> NEW.action OR OLD.subject <> NEW.subject OR OLD.detail <> NEW.detail)
    EXECUTE FUNCTION audit_is_append_only();
