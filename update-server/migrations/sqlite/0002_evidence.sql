-- What was seen of a failure: apart from the event's document, so that lists of events do not carry it, and so that it
-- can make room for newer evidence while the event stays.
ALTER TABLE event ADD COLUMN evidence TEXT NOT NULL DEFAULT '';
CREATE INDEX event_evidence ON event (node, id) WHERE evidence <> '';
