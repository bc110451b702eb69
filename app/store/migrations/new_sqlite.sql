CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL,
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
CREATE TABLE collections (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
	name VARCHAR(64) NOT NULL,
	embedding_space VARCHAR(64) NOT NULL,
	dimension INTEGER NOT NULL,
	revision BIGINT NOT NULL,
	metadata JSON NOT NULL,
	created_at DATETIME NOT NULL, policy JSON DEFAULT '{}' NOT NULL, calibration_id VARCHAR(64), stamp VARCHAR(32) DEFAULT '' NOT NULL,
	UNIQUE (name)
);
CREATE TABLE persons (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
	collection INTEGER NOT NULL,
	person_id VARCHAR(256) NOT NULL,
	metadata JSON NOT NULL,
	created_at DATETIME NOT NULL,
	updated_at DATETIME NOT NULL, data_key BLOB, key_id VARCHAR(64), active_at DATETIME, consent_until DATETIME,
	UNIQUE (collection, person_id),
	FOREIGN KEY(collection) REFERENCES collections (id) ON DELETE CASCADE
);
CREATE TABLE templates (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
	face_id VARCHAR(36) NOT NULL,
	collection INTEGER NOT NULL,
	person INTEGER NOT NULL,
	embedding BLOB NOT NULL,
	content_digest VARCHAR(64) NOT NULL,
	quality JSON NOT NULL,
	created_at DATETIME NOT NULL, sealed BOOLEAN DEFAULT 0 NOT NULL,
	UNIQUE (person, content_digest),
	UNIQUE (face_id),
	FOREIGN KEY(collection) REFERENCES collections (id) ON DELETE CASCADE,
	FOREIGN KEY(person) REFERENCES persons (id) ON DELETE CASCADE
);
CREATE INDEX templates_by_collection ON templates (collection, id);
CREATE TABLE changes (
	collection INTEGER NOT NULL,
	revision BIGINT NOT NULL,
	template BIGINT NOT NULL,
	kind VARCHAR(8) NOT NULL,
	created_at DATETIME NOT NULL, stamp VARCHAR(32) DEFAULT '' NOT NULL,
	PRIMARY KEY (collection, revision, template),
	FOREIGN KEY(collection) REFERENCES collections (id) ON DELETE CASCADE
);
CREATE TABLE calibrations (
	collection INTEGER NOT NULL,
	calibration_id VARCHAR(64) NOT NULL,
	content JSON NOT NULL,
	created_at DATETIME NOT NULL,
	PRIMARY KEY (collection, calibration_id),
	FOREIGN KEY(collection) REFERENCES collections (id) ON DELETE CASCADE
);
CREATE TABLE "database" (
	id VARCHAR(36) NOT NULL,
	created_at DATETIME NOT NULL,
	PRIMARY KEY (id)
);
CREATE TABLE idempotency (
	collection INTEGER NOT NULL,
	"key" VARCHAR(255) NOT NULL,
	person INTEGER NOT NULL,
	request_digest VARCHAR(64) NOT NULL,
	answer JSON NOT NULL,
	created_at DATETIME NOT NULL,
	PRIMARY KEY (collection, "key"),
	FOREIGN KEY(collection) REFERENCES collections (id) ON DELETE CASCADE,
	FOREIGN KEY(person) REFERENCES persons (id) ON DELETE CASCADE
);
CREATE INDEX idempotency_by_age ON idempotency (collection, created_at);
CREATE INDEX idempotency_by_person ON idempotency (person);
CREATE TABLE encryption_keys (
	key_id VARCHAR(64) NOT NULL,
	fingerprint VARCHAR(64) NOT NULL,
	created_at DATETIME NOT NULL,
	PRIMARY KEY (key_id)
);
CREATE TABLE crops (
	template INTEGER NOT NULL,
	crop BLOB NOT NULL,
	sealed BOOLEAN NOT NULL,
	PRIMARY KEY (template),
	FOREIGN KEY(template) REFERENCES templates (id) ON DELETE CASCADE
);
CREATE TABLE spares (
	template INTEGER NOT NULL,
	embedding_space VARCHAR(64) NOT NULL,
	embedding BLOB NOT NULL,
	sealed BOOLEAN NOT NULL,
	PRIMARY KEY (template, embedding_space),
	FOREIGN KEY(template) REFERENCES templates (id) ON DELETE CASCADE
);
CREATE TABLE metadata_terms (
	term BIGINT NOT NULL,
	person INTEGER NOT NULL,
	PRIMARY KEY (term, person),
	FOREIGN KEY(person) REFERENCES persons (id) ON DELETE CASCADE
)
 WITHOUT ROWID;
CREATE INDEX metadata_terms_by_person ON metadata_terms (person);
CREATE TABLE declared_pairs (
	person_a INTEGER NOT NULL,
	person_b INTEGER NOT NULL,
	created_at DATETIME NOT NULL,
	PRIMARY KEY (person_a, person_b),
	CONSTRAINT declared_pairs_in_order CHECK (person_a < person_b),
	FOREIGN KEY(person_a) REFERENCES persons (id) ON DELETE CASCADE,
	FOREIGN KEY(person_b) REFERENCES persons (id) ON DELETE CASCADE
);
CREATE INDEX declared_pairs_by_second ON declared_pairs (person_b);
CREATE TABLE access_keys (
	key_id VARCHAR(12) NOT NULL,
	name VARCHAR(64) NOT NULL,
	digest BLOB NOT NULL,
	pepper VARCHAR(16) NOT NULL,
	scopes JSON NOT NULL,
	collections JSON,
	created_at DATETIME NOT NULL,
	expires_at DATETIME,
	revoked_at DATETIME,
	last_used_at DATETIME, limits JSON,
	PRIMARY KEY (key_id)
);
CREATE INDEX access_keys_by_name ON access_keys (name);
CREATE TABLE access_state (
	revision BIGINT NOT NULL,
	PRIMARY KEY (revision)
);
CREATE TABLE access_usage (
	name VARCHAR(64) NOT NULL,
	day DATE NOT NULL,
	photos BIGINT NOT NULL,
	PRIMARY KEY (name, day)
);
CREATE TABLE audit_entries (
	sequence BIGINT NOT NULL,
	at DATETIME NOT NULL,
	actor VARCHAR(300) NOT NULL,
	action VARCHAR(40) NOT NULL,
	collection VARCHAR(64),
	person BIGINT,
	content TEXT NOT NULL,
	digest BLOB NOT NULL,
	PRIMARY KEY (sequence)
);
CREATE INDEX audit_entries_by_person ON audit_entries (person);
CREATE INDEX audit_entries_by_time ON audit_entries (at);
CREATE TABLE audit_head (
	id INTEGER NOT NULL,
	sequence BIGINT NOT NULL,
	digest BLOB NOT NULL,
	signature BLOB,
	signer VARCHAR(16),
	PRIMARY KEY (id)
);
CREATE INDEX persons_by_consent ON persons (collection, consent_until);
CREATE TABLE withdrawn_consents (
	collection INTEGER NOT NULL,
	digest BLOB NOT NULL,
	PRIMARY KEY (collection, digest),
	FOREIGN KEY(collection) REFERENCES collections (id) ON DELETE CASCADE
);
INSERT INTO "access_state" VALUES (0);
INSERT INTO "alembic_version" VALUES ('0014');
INSERT INTO "audit_head" VALUES (1, 0, x'0000000000000000000000000000000000000000000000000000000000000000', NULL, NULL)
