// Private networks with the public SDK, unchanged: two of them with one range, and what their VMs see of each other.
import assert from "node:assert/strict";
import { freestyle } from "freestyle";

const started = Date.now();
const say = (what) => console.log(`${((Date.now() - started) / 1000).toFixed(1)} s  ${what}`);
const cidr = "192.168.10.0/24";

const made = await Promise.all(["one", "two"].map((name) => freestyle.vpc.create({ name, cidr })));
const [one, two] = made.map(({ vpcId }) => vpcId);
assert.notEqual(one, two, "one range, two networks");
for (const wrong of ["192.168.10.1/24", "169.254.0.0/24", "no range"]) {
  await assert.rejects(freestyle.vpc.create({ cidr: wrong }), /400/, wrong);
}
say("two networks with one range");

const create = (name, vpc, ipv4) =>
  freestyle.vms.create({ name, idleTimeoutSeconds: null, nics: [{ default: true, vpc, mode: "routed", ipv4 }] });
const api = await create("api", one, "192.168.10.10");
const worker = await create("worker", one, "192.168.10.11");
const stranger = await create("stranger", two, "192.168.10.11");
for (const ipv4 of ["192.168.10.11", "192.168.11.1", "192.168.10.0", "192.168.10.255", "x"]) {
  await assert.rejects(create("refused", one, ipv4), (error) => /CREATE_VM_BAD_REQUEST|BAD_REQUEST|400/.test(error.message), ipv4);
}
say("three VMs; addresses that are taken or outside are refused");

const run = async ({ vm }, command) => {
  const { statusCode, stdout, stderr } = await vm.exec({ command, timeoutMs: 300_000 });
  return { ok: statusCode === 0, stdout, stderr };
};
const serve = async (machine, word) => {
  await machine.vm.fs.writeTextFile("/srv/index.html", word);
  await machine.vm.fs.writeTextFile(
    "/etc/systemd/system/http.service",
    "[Service]\nWorkingDirectory=/srv\nExecStart=/usr/bin/python3 -m http.server 8080 --bind 0.0.0.0\nRestart=always\n" +
      "[Install]\nWantedBy=multi-user.target\n",
  );
  const up = await run(machine, "systemctl daemon-reload && systemctl enable --now http");
  assert.ok(up.ok, up.stderr);
  const heard = await run(machine, "curl -sf --retry 60 --retry-connrefused --retry-delay 1 http://127.0.0.1:8080/");
  assert.equal(heard.stdout, word, heard.stderr);
};
await Promise.all([serve(worker, "of the worker"), serve(stranger, "of the stranger")]);
say("servers in two VMs with one address");

const ping = await run(api, "ping -c 3 192.168.10.11");
assert.ok(ping.ok && / 0% packet loss/.test(ping.stdout), ping.stdout + ping.stderr);
assert.equal((await run(api, "curl -s --max-time 120 http://192.168.10.11:8080")).stdout, "of the worker");
assert.equal((await run(api, "curl -s --max-time 120 http://worker.vpc.internal:8080")).stdout, "of the worker");
assert.equal((await run(stranger, "curl -s --max-time 120 http://192.168.10.11:8080")).stdout, "of the stranger");
assert.equal((await run(stranger, "ping -c 1 -W 3 192.168.10.10")).ok, false, "another network's VM");
assert.equal((await run(stranger, "getent hosts api.vpc.internal")).ok, false, "another network's name");
assert.equal((await run(api, "ping -c 1 -W 3 192.168.10.77")).ok, false, "nobody's address");
const large = await run(api, "ping -c 2 -s 8000 192.168.10.11");
assert.ok(large.ok, large.stdout + large.stderr);
say("members reach each other, by address and name; nobody else");

await worker.vm.suspend();
const woke = await run(api, "curl -s --max-time 180 http://192.168.10.11:8080");
assert.equal(woke.stdout, "of the worker", woke.stderr);
assert.equal((await worker.vm.getInfo()).state, "running");
say("a neighbour's packet wakes a VM");

await worker.vm.stop();
await worker.vm.start();
assert.match((await run(worker, "ip -4 -o address show scope global")).stdout, /192\.168\.10\.11/);
await assert.rejects(worker.vm.fork(), /VPC_FORK_UNSUPPORTED/);
say("the address stays through a stop and a start; no fork");

await Promise.all([api, worker, stranger].map(({ vmId }) => freestyle.vms.delete({ vmId })));
say("deleted");
