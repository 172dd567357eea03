// SSH with the public SDK and command line, unchanged, and OpenSSH: what their documentation shows, line by line.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtemp, readFile, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Freestyle, freestyle } from "freestyle";

const started = Date.now();
const say = (what) => console.log(`${((Date.now() - started) / 1000).toFixed(1)} s  ${what}`);
const run = (program, words, input = "") =>
  new Promise((resolve, reject) => {
    const child = spawn(program, words, { timeout: 240_000 });
    const said = { stdout: "", stderr: "" };
    for (const stream of ["stdout", "stderr"]) child[stream].on("data", (data) => (said[stream] += data));
    child.on("error", reject);
    child.on("close", (status, signal) => resolve({ status, signal, ...said }));
    child.stdin.on("error", () => {});
    child.stdin.end(input);
  });
// An address that fails too often is not heard for some seconds; what tells a client so is a closed connection.
const ssh = async (login, ...command) => {
  for (let tries = 1; ; tries++) {
    const done = await run("ssh", ["-T", `${login}@vm-ssh.freestyle.sh`, ...command]);
    if (tries === 40 || !/^kex_exchange_identification: /m.test(done.stderr)) return done;
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
};
const says = async (login, command, expected) => {
  const { status, stdout, stderr } = await ssh(login, command);
  assert.deepEqual({ status, stdout: stdout.trim() }, { status: 0, stdout: expected }, stderr);
};
const refused = async (login) => {
  const { status, stdout, stderr } = await ssh(login, "whoami");
  assert.deepEqual({ status, stdout }, { status: 255, stdout: "" }, login);
  assert.match(stderr, /Permission denied/);
};

// SSH Access
const { vm, vmId } = await freestyle.vms.create({ idleTimeoutSeconds: null });
const { identity, identityId } = await freestyle.identities.create();
await identity.permissions.vms.grant({ vmId });
const { token, tokenId } = await identity.tokens.create();
say("a VM, an identity and a token");
await says(`${vmId}:${token}`, "whoami", "root");
await says(`${vmId},${token}`, "whoami", "root");
say("a login as root");

// SSH As A Linux User, Multiple Developers
const people = ["developer", "alice", "bob"];
const made = await vm.exec({ command: people.map((user) => `useradd --create-home --shell /bin/bash ${user}`).join(" && ") });
assert.equal(made.statusCode, 0, made.stderr);
const tokenFor = async (user) => {
  const { identity } = await freestyle.identities.create();
  await identity.permissions.vms.grant({ vmId, allowedUsers: [user] });
  return (await identity.tokens.create()).token;
};
const [developer, alice, bob] = await Promise.all(people.map(tokenFor));
await says(`${vmId}+developer:${developer}`, "whoami && pwd", "developer\n/home/developer");
await says(`${vmId}+alice,${alice}`, "whoami", "alice");
await says(`${vmId}+bob:${bob}`, "whoami", "bob");
for (const login of [`${vmId}:${developer}`, `${vmId}+bob:${alice}`, `${vmId}+alice:${bob}`]) await refused(login);
await refused(`${vmId}:${token.slice(0, -1)}${token.endsWith("a") ? "b" : "a"}`);
await refused(`${"a".repeat(20)}:${token}`);
const nobody = await ssh(`${vmId}+nosuchuser:${token}`, "whoami");
assert.equal(nobody.status, 255);
say("each as the user that their identity may be, and as no other");

// Client Sessions
const client = new Freestyle({ accessToken: token });
const theirs = await client.vms.get({ vmId });
assert.match((await theirs.vm.exec("pwd")).stdout, /^\//);
await assert.rejects(client.vms.create(), "a token makes nothing");
await vm.stop();
await says(`${vmId}:${token}`, "uptime -p | cut -c1-2", "up");
say("a login starts a stopped VM");
await vm.exec("echo kept > /dev/shm/word");
await vm.suspend();
await says(`${vmId}:${token}`, "cat /dev/shm/word", "kept");
say("a login wakes a suspended VM, as it was");

// A session is cut when its token is.
const top = spawn("ssh", ["-tt", `${vmId}:${token}@vm-ssh.freestyle.sh`, "top -d 0.5"], { stdio: ["pipe", "pipe", "pipe"] });
await new Promise((resolve) => top.stdout.once("data", resolve));
const revoked = Date.now();
const ended = new Promise((resolve) => top.on("close", resolve));
await identity.tokens.revoke({ tokenId });
const answered = Date.now() - revoked;
assert.equal(await ended, 255);
say(`revoked in ${answered} ms, cut ${Date.now() - revoked} ms after it was asked for`);
await refused(`${vmId}:${token}`);
await freestyle.identities.delete({ identityId });

// The command line: vm ssh, vm scp, vm create --ssh --delete
const cli = async (words, input) => {
  const done = await run("node_modules/.bin/freestyle", words, input);
  assert.equal(done.status, 0, `${words}: ${done.stdout}${done.stderr}`);
  return done.stdout;
};
assert.match(await cli(["vm", "ssh", vmId], "echo from-$((40 + 2))\nexit\n"), /from-42[^]*Cleanup complete/);
const folder = await mkdtemp(join(tmpdir(), "scp-"));
const data = Buffer.from(Array.from({ length: 300_000 }, (_, at) => (at * 7 + (at >> 8)) & 255));
await writeFile(join(folder, "up"), data);
await cli(["vm", "scp", join(folder, "up"), `${vmId}+alice:/home/alice/file`]);
await cli(["vm", "scp", `${vmId}:/home/alice/file`, join(folder, "down")]);
assert.ok(data.equals(await readFile(join(folder, "down"))), "as it was");
await cli(["vm", "scp", "-r", `${vmId}:/etc/ssh`, join(folder, "ssh")]);
assert.match(await readFile(join(folder, "ssh/ssh_host_ed25519_key.pub"), "utf8"), /^ssh-ed25519 /);
say("the command line: vm ssh, vm scp");
const short = await cli(["vm", "create", "--ssh", "--delete"], "echo short-$((1 + 1))\nexit\n");
assert.match(short, /short-2[^]*VM deleted/);
assert.equal((await freestyle.vms.list()).vms.length, 1, "it is gone");
say("vm create --ssh --delete");
const identities = await freestyle.identities.list();
for (const { id } of identities.identities) await freestyle.identities.delete({ identityId: id });
await vm.delete();
