-- Text, BIGINT and INTEGER alone, so that the same schema serves SQLite and PostgreSQL. Times are milliseconds since
-- the Unix epoch.
CREATE TABLE accounts (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    created_ms BIGINT NOT NULL
);

-- Of the secret only its SHA-256: it is random, so a slow hash would protect nothing more.
CREATE TABLE api_keys (
    id TEXT PRIMARY KEY,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    name TEXT,
    hash TEXT NOT NULL UNIQUE,
    created_ms BIGINT NOT NULL,
    last_used_ms BIGINT
);

CREATE TABLE vms (
    id TEXT PRIMARY KEY,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    name TEXT,
    image TEXT NOT NULL,
    vcpus BIGINT NOT NULL,
    memory_mib BIGINT NOT NULL,
    disk_mib BIGINT NOT NULL,
    ipv4 TEXT NOT NULL UNIQUE,
    -- What control means to do with it; see the state machine.
    phase TEXT NOT NULL,
    instance_id TEXT NOT NULL,
    run BIGINT NOT NULL,
    idle_timeout_seconds BIGINT,
    activity_threshold_bytes BIGINT,
    persistence TEXT NOT NULL,
    exit_status TEXT,
    created_ms BIGINT NOT NULL
);
CREATE INDEX vms_by_account ON vms (account_id, created_ms);

CREATE TABLE mappings (
    id TEXT PRIMARY KEY,
    host TEXT NOT NULL UNIQUE,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    vm_id TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    port BIGINT NOT NULL,
    created_ms BIGINT NOT NULL
);
CREATE INDEX mappings_by_account ON mappings (account_id, created_ms);
CREATE INDEX mappings_by_vm ON mappings (vm_id);

CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO counters (name, value) VALUES ('generation', 0), ('address', 0);
