-- What an account has begun to prove: the code that is to stand in the domain's DNS.
CREATE TABLE verifications (
    id TEXT PRIMARY KEY,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    domain TEXT NOT NULL,
    code TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    -- Of the last look that found no proof.
    last_error TEXT
);
CREATE UNIQUE INDEX verifications_by_domain ON verifications (account_id, domain);

-- What was proved. A domain is one account's, with all names below it that no other proof took out.
CREATE TABLE domains (
    id TEXT PRIMARY KEY,
    domain TEXT NOT NULL UNIQUE,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    code TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    -- When the proof was last seen, and when it was last looked for.
    proved_ms BIGINT NOT NULL,
    checked_ms BIGINT NOT NULL,
    -- Looks in a row at which the zone's own servers had it no more.
    misses BIGINT NOT NULL,
    last_error TEXT
);
CREATE INDEX domains_by_account ON domains (account_id, created_ms, id);

-- Names whose VM was deleted: the door says so. It is nobody's right to the name.
CREATE TABLE gone_mappings (
    host TEXT PRIMARY KEY,
    gone_ms BIGINT NOT NULL
);
