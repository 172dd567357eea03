-- Who is not the account, and may do what it was granted on some VMs. All of an identity goes with it.
CREATE TABLE identities (
    id TEXT PRIMARY KEY,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    created_ms BIGINT NOT NULL
);
CREATE INDEX identities_by_account ON identities (account_id, created_ms, id);

CREATE TABLE tokens (
    id TEXT PRIMARY KEY,
    identity_id TEXT NOT NULL REFERENCES identities (id) ON DELETE CASCADE,
    -- SHA-256, hexadecimal.
    hash TEXT NOT NULL UNIQUE,
    created_ms BIGINT NOT NULL
);
CREATE INDEX tokens_by_identity ON tokens (identity_id, created_ms, id);

CREATE TABLE vm_permissions (
    id TEXT PRIMARY KEY,
    identity_id TEXT NOT NULL REFERENCES identities (id) ON DELETE CASCADE,
    vm_id TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    -- Names of Linux users, JSON; any when absent.
    allowed_users TEXT,
    granted_by TEXT NOT NULL,
    granted_ms BIGINT NOT NULL
);
CREATE UNIQUE INDEX vm_permissions_by_pair ON vm_permissions (identity_id, vm_id);
CREATE INDEX vm_permissions_by_vm ON vm_permissions (vm_id);

-- For the git front: no repository is known yet.
CREATE TABLE git_permissions (
    identity_id TEXT NOT NULL REFERENCES identities (id) ON DELETE CASCADE,
    repo TEXT NOT NULL,
    -- read or write.
    access TEXT NOT NULL,
    granted_ms BIGINT NOT NULL,
    PRIMARY KEY (identity_id, repo)
);

-- Public keys that log in by SSH, of an identity or, without one, of the account itself.
CREATE TABLE ssh_keys (
    id TEXT PRIMARY KEY,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    identity_id TEXT REFERENCES identities (id) ON DELETE CASCADE,
    -- Type and base64, as in authorized_keys.
    public_key TEXT NOT NULL,
    name TEXT,
    created_ms BIGINT NOT NULL
);
CREATE UNIQUE INDEX ssh_keys_of_identity ON ssh_keys (identity_id, public_key) WHERE identity_id IS NOT NULL;
CREATE UNIQUE INDEX ssh_keys_of_account ON ssh_keys (account_id, public_key) WHERE identity_id IS NULL;
