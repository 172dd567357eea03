// VMs that sleep, wake and multiply: suspend, wake by HTTPS and by exec, idle, fork, snapshot, create from a snapshot.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { freestyle } from "freestyle";

const run = promisify(execFile);
const { GATEHOUSE_CA: ca, GATEHOUSE_SERVER: server } = process.env;
const host = "something.style.dev";
const started = Date.now();
const say = (what) => console.log(`${((Date.now() - started) / 1000).toFixed(1)} s  ${what}`);
const visit = async (path = "") => {
  const { stdout } = await run("curl", ["-sS", "--fail", "--cacert", ca, "--max-time", "180", `https://${host}/${path}`]);
  return Number(stdout);
};
const state = async (vm) => (await vm.getInfo()).state;
const until = async (what, probe) => {
  const limit = Date.now() + 120_000;
  while (!(await probe())) {
    assert.ok(Date.now() < limit, `${what}: not in time`);
    await new Promise((resolve) => setTimeout(resolve, 250));
  }
};
// What no two machines may share.
const identity = "cat /etc/machine-id; hostname; cat /etc/ssh/ssh_host_ed25519_key.pub; head -c 16 /dev/urandom | base64; " +
  "cat /proc/sys/kernel/random/uuid; ip -4 -o address show scope global | tr -s ' ' | cut -d' ' -f4";
const identify = async (vm) => (await vm.exec({ command: identity, timeoutMs: 300_000 })).stdout.trim().split("\n");
const clock = async (vm) => {
  const before = Date.now() / 1000;
  const { stdout } = await vm.exec("date +%s.%N");
  const after = Date.now() / 1000;
  const now = Number(stdout);
  assert.ok(now > before - 1 && now < after + 1, `the clock says ${now}, it is between ${before} and ${after}`);
};

const { vm, vmId } = await freestyle.vms.create({ name: "sleeper", idleTimeoutSeconds: null });
const settled = "until systemctl is-system-running --wait 2>/dev/null | grep -qE 'running|degraded'; do sleep 1; done";
assert.equal((await vm.exec({ command: settled, timeoutMs: 300_000 })).statusCode, 0);
await vm.fs.writeTextFile("/root/counter.py", await readFile(join(dirname(server), "counter.py"), "utf8"));
const unit = await vm.exec("systemd-run --unit=counter python3 /root/counter.py");
assert.equal(unit.statusCode, 0, unit.stderr);
const listening = "curl -sf --retry 600 --retry-connrefused --retry-delay 1 -o /dev/null http://127.0.0.1:8080/";
assert.equal((await vm.exec({ command: listening, timeoutMs: 300_000 })).statusCode, 0);
await freestyle.domains.mappings.create({ domain: host, vmId, vmPort: 8080 });
assert.equal(await visit(), 2);
say("a counter serves");

await vm.exec("echo kept >/root/unsynced; echo kept >/run/in-memory");
assert.equal((await vm.suspend()).id, vmId);
assert.equal(await state(vm), "suspended");
say("suspended");
assert.equal(await visit(), 3, "the same process answers");
assert.equal(await state(vm), "running");
await clock(vm);
say("woken by a request, in the state it was in");

await vm.suspend();
assert.equal((await vm.exec("cat /root/unsynced /run/in-memory")).stdout, "kept\nkept\n");
await clock(vm);
say("woken by a command");

await vm.suspend();
await vm.start({ idleTimeoutSeconds: 3 });
await until("idle", async () => (await state(vm)) === "suspended");
say("suspended because it was idle");
assert.equal(await visit("over-a-sleep"), 4);
say("woken again, and once more over the request, which nobody repeated");
await vm.start({ idleTimeoutSeconds: null });

const { forks } = await vm.fork({ count: 3 });
assert.equal(forks.length, 3);
say("forked three times");
const copies = forks.map((fork) => fork.vm);
const identities = await Promise.all([vm, ...copies].map(identify));
for (const place of identities[0].keys()) {
  const values = identities.map((lines) => lines[place]);
  assert.equal(new Set(values).size, values.length, `all differ in ${values}`);
}
for (const copy of copies) {
  const { stdout } = await copy.exec("curl -sf --max-time 120 http://127.0.0.1:8080/; cat /root/unsynced /run/in-memory");
  assert.equal(stdout, "5\nkept\nkept\n", "each goes on from the same moment");
  await clock(copy);
}
assert.equal(await visit(), 5, "and so does the parent");
await copies[0].fs.writeTextFile("/root/unsynced", "changed\n");
assert.equal(await copies[1].fs.readTextFile("/root/unsynced"), "kept\n");
assert.equal(await vm.fs.readTextFile("/root/unsynced"), "kept\n");
say("all different, none sees the others");
await Promise.all(copies.map((copy) => copy.delete()));
say("forks deleted");

const { snapshotId } = await vm.snapshot({ name: "warm" });
assert.match(snapshotId, /^sc-[a-z0-9]{20}$/);
const { snapshots, readyCount } = await freestyle.vms.snapshots.list();
assert.deepEqual([snapshots.length, readyCount, snapshots[0].name, snapshots[0].state], [1, 1, "warm", "ready"]);
say("snapshot");
await freestyle.vms.delete({ vmId });
const { vm: second } = await freestyle.vms.create({ snapshotId, idleTimeoutSeconds: null });
const { stdout: count } = await second.exec("curl -sf --max-time 120 http://127.0.0.1:8080/; cat /run/in-memory");
assert.equal(count, "6\nkept\n", "its processes run");
await clock(second);
const [machineId] = await identify(second);
assert.notEqual(machineId, identities[0][0]);
say("created from the snapshot, after its VM was deleted");
await assert.rejects(freestyle.vms.create({ snapshotId: "sc-aaaaaaaaaaaaaaaaaaaa" }), /SNAPSHOT_NOT_FOUND/);
await second.delete();
await freestyle.vms.snapshots.delete({ snapshotId });
assert.equal((await freestyle.vms.list()).totalCount, 0);
say("all gone");
