-- Certificates of the authority, by name, and the orders for them that are under way. Keys are sealed.
CREATE TABLE certificates (
    -- A host, or *. before one.
    name TEXT PRIMARY KEY,
    -- What serves. All of it or none.
    chain_pem TEXT,
    sealed_key TEXT,
    not_before_ms BIGINT,
    not_after_ms BIGINT,
    renew_ms BIGINT,
    -- When the authority is to be asked again when to renew.
    ask_ms BIGINT NOT NULL DEFAULT 0,
    -- The order under way, so that it is taken up again. Both or none.
    order_url TEXT,
    order_key TEXT,
    -- In a row.
    failures BIGINT NOT NULL DEFAULT 0,
    next_ms BIGINT NOT NULL DEFAULT 0,
    last_error TEXT,
    last_error_ms BIGINT,
    -- 1 while it is wanted, else 0. What is not wanted is not shown, and kept until its end.
    wanted BIGINT NOT NULL,
    created_ms BIGINT NOT NULL
);

-- When orders were made, so that a start anew does not exceed the authority's bounds.
CREATE TABLE acme_orders (
    at_ms BIGINT NOT NULL
);
CREATE INDEX acme_orders_by_time ON acme_orders (at_ms);

-- Domains below which all names are to be certified, by whom they were asked for.
CREATE TABLE wildcard_wishes (
    domain TEXT NOT NULL,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    created_ms BIGINT NOT NULL,
    PRIMARY KEY (domain, account_id)
);
