-- Private networks. An address is one VM's within its network and no longer within the house, which takes a new table
-- of VMs: constraints of a column cannot be dropped everywhere. What refers to it is made anew before it, so that
-- nothing is deleted by cascade.
CREATE TABLE vpcs (
    id TEXT PRIMARY KEY,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    name TEXT,
    cidr TEXT NOT NULL,
    -- The address that was given last, as a number; the next search begins behind it.
    last_address BIGINT NOT NULL,
    created_ms BIGINT NOT NULL
);
CREATE INDEX vpcs_by_account ON vpcs (account_id, created_ms);

CREATE TABLE new_vms (
    id TEXT PRIMARY KEY,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    name TEXT,
    image TEXT NOT NULL,
    vcpus BIGINT NOT NULL,
    memory_mib BIGINT NOT NULL,
    disk_mib BIGINT NOT NULL,
    -- The default network when it is NULL.
    vpc_id TEXT REFERENCES vpcs (id),
    -- Whether it was said that its NIC in the VPC is its way to the Internet.
    vpc_default BIGINT NOT NULL DEFAULT 0,
    ipv4 TEXT NOT NULL,
    -- What control means to do with it; see the state machine.
    phase TEXT NOT NULL,
    instance_id TEXT NOT NULL,
    run BIGINT NOT NULL,
    idle_timeout_seconds BIGINT,
    activity_threshold_bytes BIGINT,
    persistence TEXT NOT NULL,
    exit_status TEXT,
    created_ms BIGINT NOT NULL,
    origin_id TEXT,
    last_used_ms BIGINT NOT NULL DEFAULT 0
);
INSERT INTO new_vms (id, account_id, name, image, vcpus, memory_mib, disk_mib, ipv4, phase, instance_id, run,
    idle_timeout_seconds, activity_threshold_bytes, persistence, exit_status, created_ms, origin_id, last_used_ms)
SELECT id, account_id, name, image, vcpus, memory_mib, disk_mib, ipv4, phase, instance_id, run,
    idle_timeout_seconds, activity_threshold_bytes, persistence, exit_status, created_ms, origin_id, last_used_ms
FROM vms;

CREATE TABLE new_mappings (
    id TEXT PRIMARY KEY,
    host TEXT NOT NULL UNIQUE,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    vm_id TEXT NOT NULL REFERENCES new_vms (id) ON DELETE CASCADE,
    port BIGINT NOT NULL,
    created_ms BIGINT NOT NULL
);
INSERT INTO new_mappings (id, host, account_id, vm_id, port, created_ms)
SELECT id, host, account_id, vm_id, port, created_ms FROM mappings;

DROP TABLE mappings;
DROP TABLE vms;
ALTER TABLE new_vms RENAME TO vms;
ALTER TABLE new_mappings RENAME TO mappings;
CREATE INDEX vms_by_account ON vms (account_id, created_ms);
CREATE UNIQUE INDEX vms_by_default_address ON vms (ipv4) WHERE vpc_id IS NULL;
CREATE UNIQUE INDEX vms_by_vpc_address ON vms (vpc_id, ipv4);
CREATE INDEX mappings_by_account ON mappings (account_id, created_ms);
CREATE INDEX mappings_by_vm ON mappings (vm_id);
