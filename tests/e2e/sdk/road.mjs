// The whole road with the public SDK, unchanged: create, exec, files, a served page, a mapped host, and back.
// Settings come from the environment: FREESTYLE_API_URL, FREESTYLE_API_KEY, GATEHOUSE_CA, GATEHOUSE_SERVER.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { promisify } from "node:util";
import { Errors, freestyle } from "freestyle";
import WebSocket from "ws";

const run = promisify(execFile);
const { GATEHOUSE_CA: ca, GATEHOUSE_SERVER: server } = process.env;
const host = "something.style.dev";
const started = Date.now();
const say = (what) => console.log(`${((Date.now() - started) / 1000).toFixed(1)} s  ${what}`);
const curl = async (...args) => {
  const { stdout } = await run("curl", ["-sS", "--cacert", ca, "--max-time", "180", ...args]);
  return stdout;
};

const { accountId } = await freestyle.whoami();
assert.match(accountId, /^ac-/);
say("whoami");

const { vm, vmId } = await freestyle.vms.create({ name: "road", idleTimeoutSeconds: null, persistence: { type: "persistent" } });
assert.match(vmId, /^[a-z0-9]{20}$/);
say(`created ${vmId}`);
const uname = await vm.exec("uname -a");
assert.equal(uname.statusCode, 0);
assert.match(uname.stdout, /^Linux .* x86_64 GNU\/Linux\n$/);
say("first exec");

const mixed = await vm.exec("echo out; echo err >&2; exit 7");
assert.deepEqual([mixed.stdout, mixed.stderr, mixed.statusCode], ["out\n", "err\n", 7]);
const bare = await vm.exec('echo "${HOME-none} $(id -un) $PWD"');
assert.equal(bare.stdout, "none root /\n");
await assert.rejects(vm.exec({ command: "echo part; sleep 60", timeoutMs: 1500 }), (error) => {
  assert.match(error.message, /EXEC_TIMED_OUT/);
  assert.equal(error.body.stdout, "part\n");
  return true;
});
say("exec: streams, status, time limit");

const text = "Grüße\nfrom outside\n".repeat(1000);
await vm.fs.writeTextFile("/root/a b.txt", text);
assert.equal(await vm.fs.readTextFile("/root/a b.txt"), text);
const bytes = Buffer.from(Uint8Array.from({ length: 300_000 }, (_, place) => (place * 31) & 255));
await vm.fs.writeFile("/root/bytes", bytes);
assert.ok(bytes.equals(await vm.fs.readFile("/root/bytes")));
assert.ok((await vm.fs.readDir("/root")).some((entry) => entry.name === "bytes" && entry.kind === "file"));
assert.equal(await vm.fs.exists("/root/nothing"), false);
assert.equal((await vm.fs.stat("/root/bytes")).size, 300_000);
await assert.rejects(vm.fs.readTextFile("/root/nothing"), /FILE_NOT_FOUND/);
say("files");

await vm.fs.writeTextFile("/root/server.py", await readFile(server, "utf8"));
const unit = await vm.exec("systemd-run --unit=page python3 /root/server.py 3000 'a page of a machine'");
assert.equal(unit.statusCode, 0, unit.stderr);
const listening = await vm.exec({
  command: "curl -sf --retry 600 --retry-connrefused --retry-delay 1 -o /dev/null http://127.0.0.1:3000/",
  timeoutMs: 300_000,
});
assert.equal(listening.statusCode, 0, listening.stderr);
say("a server in the machine");

const mapping = await freestyle.domains.mappings.create({ domain: host, vmId, vmPort: 3000 });
assert.deepEqual([mapping.domain, mapping.vmId, mapping.vmPort], [host, vmId, 3000]);
assert.equal(await curl("--http1.1", `https://${host}/`), "a page of a machine");
assert.equal(await curl("--http2", "-w", " %{http_version}", `https://${host}/`), "a page of a machine 2");
assert.equal(await curl("-o", "/dev/null", "-w", "%{http_code} %{redirect_url}", `http://${host}/x?y`), `308 https://${host}/x?y`);
const seen = await curl("-H", "X-Forwarded-For: 6.6.6.6", `https://${host}/headers`);
assert.match(seen, /X-Forwarded-Proto: https/i);
assert.doesNotMatch(seen, /6\.6\.6\.6/);
assert.equal(await curl(`https://${host}/events`), "data: 0\n\ndata: 1\n\ndata: 2\n\n");
say("HTTP/1.1, HTTP/2, redirect, forwarded headers, events");

const echoed = await new Promise((resolve, reject) => {
  const socket = new WebSocket(`wss://${host}/echo`, { ca: process.env.GATEHOUSE_CA_PEM });
  socket.on("open", () => socket.send("x".repeat(1000)));
  socket.on("message", (data) => { socket.close(); resolve(data.toString()); });
  socket.on("error", reject);
});
assert.equal(echoed, "x".repeat(1000));
say("WebSocket");

assert.equal((await freestyle.domains.mappings.list({ domain: host })).mappings.length, 1);
await freestyle.domains.mappings.delete({ domain: host });
assert.equal((await curl("-o", "/dev/null", "-w", "%{http_code}", `https://${host}/`)), "404");
say("unmapped: 404");

await assert.rejects(freestyle.domains.mappings.create({ domain: "shop.example.com", vmId, vmPort: 80 }), (error) => {
  assert.ok(error instanceof Errors.DomainOwnershipNotVerifiedError || /DOMAIN_OWNERSHIP_NOT_VERIFIED/.test(error.message), error.message);
  return true;
});
const listed = await freestyle.vms.list();
assert.equal(listed.runningCount, 1);
assert.deepEqual([listed.vms[0].id, listed.vms[0].name, listed.vms[0].state], [vmId, "road", "running"]);
await vm.stop();
assert.equal((await vm.getInfo()).state, "stopped");
say("stopped");
await vm.start();
assert.equal(await vm.fs.readTextFile("/root/a b.txt"), text);
say("started again, files are there");

await freestyle.vms.delete({ vmId });
await assert.rejects(vm.exec("true"), /VM_NOT_FOUND/);
assert.equal((await freestyle.vms.list()).totalCount, 0);
say("deleted");
