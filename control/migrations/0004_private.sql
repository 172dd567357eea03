-- What private networks have besides VMs: VPN clients, firewall rules, services of this host, peers.
-- Each secret is sealed under the key of the file house.key beside the database.
CREATE TABLE secrets (
    name TEXT PRIMARY KEY,
    sealed TEXT NOT NULL
);

-- 1 while a VPC's first host address stands for its VPN clients, and is no member's.
INSERT INTO counters (name, value) VALUES ('hidden_clients', 0);
-- The tunnel address that was given last, as a number; the next search begins behind it.
ALTER TABLE vpcs ADD COLUMN last_client BIGINT NOT NULL DEFAULT 0;

-- A session ends with its network, with the API key that made it, and with its gateway.
CREATE TABLE sessions (
    id TEXT PRIMARY KEY,
    vpc_id TEXT NOT NULL REFERENCES vpcs (id) ON DELETE CASCADE,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    key_id TEXT REFERENCES api_keys (id) ON DELETE CASCADE,
    gateway_vm_id TEXT REFERENCES vms (id) ON DELETE CASCADE,
    client_key TEXT NOT NULL UNIQUE,
    -- Sealed.
    preshared_key TEXT NOT NULL,
    ipv4 TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL
);
CREATE UNIQUE INDEX sessions_by_address ON sessions (vpc_id, ipv4);
CREATE INDEX sessions_by_account ON sessions (account_id);
CREATE INDEX sessions_by_key ON sessions (key_id);
CREATE INDEX sessions_by_gateway ON sessions (gateway_vm_id);
CREATE INDEX sessions_by_end ON sessions (expires_ms);

-- A rule goes with whomever it names.
CREATE TABLE rules (
    id TEXT PRIMARY KEY,
    vpc_id TEXT NOT NULL REFERENCES vpcs (id) ON DELETE CASCADE,
    vm_id TEXT REFERENCES vms (id) ON DELETE CASCADE,
    peer_vm_id TEXT REFERENCES vms (id) ON DELETE CASCADE,
    peer_vpc_id TEXT REFERENCES vpcs (id) ON DELETE CASCADE,
    priority BIGINT NOT NULL,
    -- Of equal priority the lower one judges first.
    place BIGINT NOT NULL,
    -- What was asked for, JSON.
    wanted TEXT NOT NULL,
    created_ms BIGINT NOT NULL
);
CREATE INDEX rules_by_vpc ON rules (vpc_id, priority, place);
CREATE INDEX rules_by_vm ON rules (vm_id);
CREATE INDEX rules_by_peer_vm ON rules (peer_vm_id);
CREATE INDEX rules_by_peer_vpc ON rules (peer_vpc_id);

CREATE TABLE services (
    id TEXT PRIMARY KEY,
    vpc_id TEXT NOT NULL REFERENCES vpcs (id),
    name TEXT NOT NULL,
    ipv4 TEXT NOT NULL,
    created_ms BIGINT NOT NULL
);
CREATE UNIQUE INDEX services_by_name ON services (vpc_id, name);
CREATE UNIQUE INDEX services_by_address ON services (vpc_id, ipv4);

CREATE TABLE peerings (
    id TEXT PRIMARY KEY,
    -- Who asked first, and who was asked.
    asker_id TEXT NOT NULL REFERENCES vpcs (id) ON DELETE CASCADE,
    asked_id TEXT NOT NULL REFERENCES vpcs (id) ON DELETE CASCADE,
    -- Both have asked. Yes and no are 1 and 0.
    active BIGINT NOT NULL,
    created_ms BIGINT NOT NULL
);
CREATE UNIQUE INDEX peerings_by_pair ON peerings (asker_id, asked_id);
CREATE INDEX peerings_by_asked ON peerings (asked_id);
