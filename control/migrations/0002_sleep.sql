-- VMs that sleep, and copies of VMs. Yes and no are 1 and 0.
-- The copy that a VM was made from; cleared when a fork is done, since the copy is gone then.
ALTER TABLE vms ADD COLUMN origin_id TEXT;
-- Started, woken, or a command or file asked for; written at most every few seconds.
ALTER TABLE vms ADD COLUMN last_used_ms BIGINT NOT NULL DEFAULT 0;
UPDATE vms SET last_used_ms = created_ms;

CREATE TABLE snapshots (
    id TEXT PRIMARY KEY,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    name TEXT,
    -- The VM may be gone by now.
    source_vm_id TEXT NOT NULL,
    source_instance_id TEXT NOT NULL,
    -- building, ready or failed.
    state TEXT NOT NULL,
    failure TEXT,
    -- Deleted ones are listed for a while.
    deleted BIGINT NOT NULL,
    -- The supervisor may have files of it.
    files BIGINT NOT NULL,
    -- Which life of control is making it.
    owner TEXT NOT NULL,
    persistence TEXT NOT NULL,
    image TEXT NOT NULL,
    vcpus BIGINT NOT NULL,
    memory_mib BIGINT NOT NULL,
    disk_mib BIGINT NOT NULL,
    -- It has the memory, so that VMs made from it do not boot.
    has_memory BIGINT NOT NULL,
    created_ms BIGINT NOT NULL
);
CREATE INDEX snapshots_by_account ON snapshots (account_id, created_ms);

-- Forks that are not done: their children (vms.origin_id) go, unless the control that makes them ends its work.
CREATE TABLE forks (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL
);
