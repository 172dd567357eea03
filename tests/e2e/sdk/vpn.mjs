// A computer in a namespace of its own joins a VPC with WireGuard, by the public SDK unchanged and the file it gets.
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { once } from "node:events";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { freestyle } from "freestyle";

const run = promisify(execFile);
const { GATEHOUSE_SERVER: server, CLIENT: namespace, FREESTYLE_API_URL: api, FREESTYLE_API_KEY: key } = process.env;
const started = Date.now();
const say = (what) => console.log(`${((Date.now() - started) / 1000).toFixed(1)} s  ${what}`);
const folder = await mkdtemp("/var/tmp/vpn-");
const at = { VM: "192.168.10.10", OTHER: "192.168.10.11" };

// What the computer does, in its own namespace.
const client = async (...words) => {
  try {
    const { stdout } = await run("ip", ["netns", "exec", namespace, ...words], { timeout: 400_000 });
    return { ok: true, stdout };
  } catch (error) {
    return { ok: false, stdout: error.stdout ?? "", stderr: error.stderr ?? error.message };
  }
};
const must = async (...words) => {
  const done = await client(...words);
  assert.ok(done.ok, `${words.join(" ")}: ${done.stdout}${done.stderr}`);
  return done.stdout;
};
const pings = async (address, wait = "2") => (await client("ping", "-c", "1", "-W", wait, address)).ok;
const until = async (what, probe) => {
  const limit = Date.now() + 90_000;
  while (!(await probe())) {
    assert.ok(Date.now() < limit, `${what}: not in time`);
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
};
const call = async (method, path, body) => {
  const response = await fetch(`${api}${path}`, {
    method,
    headers: { authorization: `Bearer ${key}`, ...(body && { "content-type": "application/json" }) },
    body: body && JSON.stringify(body),
  });
  return { status: response.status, body: await response.json() };
};

const { vpcId, vpc } = await freestyle.vpc.create({ name: "workspace-network", cidr: "192.168.10.0/24" });
const create = (name, ipv4) =>
  freestyle.vms.create({ name, idleTimeoutSeconds: null, nics: [{ default: true, vpc: vpcId, mode: "routed", ipv4 }] });
const agent = await create("agent", at.VM);
const other = await create("other", at.OTHER);
const unit = async ({ vm }, name, exec, port) => {
  await vm.fs.writeTextFile(
    `/etc/systemd/system/${name}.service`,
    `[Service]\nExecStart=${exec}\nWorkingDirectory=/srv\nRestart=always\n[Install]\nWantedBy=multi-user.target\n`,
  );
  const command =
    `systemctl daemon-reload && systemctl enable --now ${name} && ` +
    `until python3 -c 'import socket; socket.create_connection(("127.0.0.1", ${port}))' 2>/dev/null; do sleep 0.5; done`;
  const { statusCode, stderr } = await vm.exec({ command, timeoutMs: 300_000 });
  assert.equal(statusCode, 0, stderr);
};
await agent.vm.fs.writeTextFile("/srv/rpc.py", await readFile(join(dirname(server), "rpc.py"), "utf8"));
await unit(agent, "copilot", "/usr/bin/python3 /srv/rpc.py 4321 a-long-random-shared-secret", 4321);
await unit(agent, "http", "/usr/bin/python3 -m http.server 8080 --bind 0.0.0.0", 8080);
const made = await agent.vm.exec("head -c 4000000 /dev/urandom >/srv/large && sha256sum </srv/large");
say("a VPC and two VMs; one serves");

const connection = await vpc.wireguard.createEphemeral();
assert.equal(connection.vpcId, vpcId);
assert.equal(connection.vpcCidr, "192.168.10.0/24");
assert.deepEqual(connection.clientAllowedIps, ["192.168.10.0/24"]);
assert.equal(connection.endpointHost, "192.0.2.1");
assert.deepEqual([connection.endpointPort, connection.listenPort], [51820, 51820]);
assert.equal(connection.clientTunnelIp, "100.96.0.2");
for (const name of ["sessionId", "interfaceName", "serverTunnelIp", "vpcIp"]) assert.ok(connection[name], name);
for (const name of ["serverPublicKey", "clientPublicKey", "clientPrivateKey"]) {
  assert.equal(Buffer.from(connection[name], "base64").length, 32, name);
}
assert.ok(!/^ *DNS/m.test(connection.clientConfig), connection.clientConfig);
const file = join(folder, "vpc0.conf");
await writeFile(file, connection.clientConfig, { mode: 0o600 });
const opened = Date.now();
await must("wg-quick", "up", file);
await until("the tunnel works", () => pings(at.VM));
say(`the file works in wg-quick up as it is; first ping ${Date.now() - opened} ms after it`);

assert.match(await must("wg", "show", "vpc0", "transfer"), /\t[1-9]\d*\t[1-9]/, "it has sent and got");
await until("the other member", () => pings(at.OTHER));
assert.equal(await pings("192.168.10.77"), false, "nobody's address");
await must("ping", "-c", "1", "-W", "20", "-M", "do", "-s", "1252", at.VM);
const sum = await must("sh", "-c", `curl -sf --max-time 300 http://${at.VM}:8080/large | sha256sum`);
assert.equal(sum, made.stdout, "4 MB came whole");
say("members are reached; 4 MB come whole");

const rpc = ["node", "rpc.mjs", at.VM, "4321"];
const told = await must(...rpc, "a-long-random-shared-secret");
assert.match(told, new RegExp(`^assistant.delta: run\\n.*assistant.message: ${agent.vmId}\\n$`, "s"), told);
assert.equal((await client(...rpc, "wrong")).stdout, "unauthorized\n");
say("a JSON-RPC service over raw TCP is driven through the tunnel");

// VMs do not begin a connection to a laptop unless a rule says so.
const back = () => other.vm.exec({ command: `ping -c 1 -W 3 ${connection.vpcIp}`, timeoutMs: 300_000 });
assert.notEqual((await back()).statusCode, 0, "a VM begins no connection to a client");
const rules = `/v1/vpcs/${vpcId}/rules`;
const allowed = await call("POST", rules, { action: "allow", direction: "out", vm: other.vmId, peer: "vpn" });
assert.equal(allowed.status, 200, JSON.stringify(allowed.body));
await until("the rule lets it through", async () => (await back()).statusCode === 0);
const denied = await call("POST", rules, { action: "deny", direction: "in", peer: "vpn", protocol: "tcp", ports: ["8080"] });
assert.equal(denied.status, 200, JSON.stringify(denied.body));
await until("the rule holds", async () => !(await client("curl", "-s", "--max-time", "2", `http://${at.VM}:8080/`)).ok);
assert.ok(await pings(at.VM), "what no rule denies goes on");
const { body: listed } = await call("GET", rules);
const counted = listed.rules.find((rule) => rule.ruleId === denied.body.ruleId);
assert.ok(counted.packets > 0 && counted.bytes > 0, JSON.stringify(listed));
assert.equal((await call("DELETE", `${rules}/${denied.body.ruleId}`)).status, 200);
await must("curl", "-sf", "--retry", "20", "--retry-all-errors", "--max-time", "300", "-o", "/dev/null", `http://${at.VM}:8080/`);
say("rules of the firewall hold at once, are counted, and go");

await agent.vm.suspend();
await must("curl", "-sf", "--max-time", "300", "-o", "/dev/null", `http://${at.VM}:8080/`);
assert.equal((await agent.vm.getInfo()).state, "running");
say("a client's packet wakes a VM");

const flood = spawn("ip", ["netns", "exec", namespace, "ping", "-i", "0.05", "-W", "1", at.VM], { stdio: "ignore" });
await connection.close();
assert.equal(await pings(at.VM), false, "a closed session's next packet is dropped");
flood.kill();
await once(flood, "exit");
await must("wg-quick", "down", file);
await assert.rejects(vpc.wireguard.deleteEphemeral({ sessionId: connection.sessionId }), /404/);
say("closed, and dead at once");

// A key of the client's own, and a client in user space.
const own = (await must("wg", "genkey")).trim();
const pub = (await must("sh", "-c", `echo ${own} | wg pubkey`)).trim();
const options = { gatewayVmId: agent.vmId, clientPublicKey: pub };
const peer = await freestyle.vpc.configureWireGuardPeer(vpcId, options);
assert.deepEqual(await freestyle.vpc.configureWireGuardPeer(vpcId, options), peer, "asked again it is the same");
assert.equal(peer.gatewayVmId, agent.vmId);
assert.ok(!peer.clientConfig.includes(own));
const withKey = peer.clientConfig.replace(/^#? *PrivateKey *=.*$/m, `PrivateKey = ${own}`);
await writeFile(file, withKey, { mode: 0o600 });
const userspace = spawn("ip", ["netns", "exec", namespace, "wireguard-go", "-f", "vpc0"], { stdio: "ignore" });
await until("wireguard-go has its device", async () => (await client("ip", "link", "show", "vpc0")).ok);
await must(
  "bash",
  "-ec",
  `wg setconf vpc0 <(wg-quick strip ${file})
   ip address add ${peer.clientTunnelIp}/32 dev vpc0; ip link set vpc0 mtu 1280 up; ip route add ${peer.vpcCidr} dev vpc0`,
);
await until("wireguard-go gets through", () => pings(at.VM));
await freestyle.vms.delete({ vmId: agent.vmId });
assert.equal(await pings(at.OTHER), false, "the peer went with its gateway VM");
userspace.kill();
await once(userspace, "exit");
say("a key of the client's own, with wireguard-go; it goes with its VM");

await freestyle.vms.delete({ vmId: other.vmId });
await rm(folder, { recursive: true });
say("deleted");
