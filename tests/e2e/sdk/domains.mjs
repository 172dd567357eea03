// A customer's domain with the public SDK and command line, unchanged: proved, mapped, certified, served, moved, unmapped.
// Settings besides those of the other programs: those of world.mjs; WORLD_ROOT, what the authority certifies by.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import tls from "node:tls";
import { promisify } from "node:util";
import { Errors, freestyle } from "freestyle";
import { PAGE, visit } from "./browser.mjs";
import { publish, until } from "./world.mjs";

const run = promisify(execFile);
const { GATEHOUSE_SERVER: server, WORLD_ROOT: root } = process.env;
const started = Date.now();
const say = (what) => console.log(`${((Date.now() - started) / 1000).toFixed(1)} s  ${what}`);
const cli = async (...args) => (await run("node_modules/.bin/freestyle", args, { timeout: 300_000 })).stdout;
const curl = async (...args) =>
  (await run("curl", ["-sS", "--cacert", root, "--connect-to", "::127.0.0.1:443", "--max-time", "180", ...args])).stdout;
const fails = (code) => (error) => {
  assert.match(`${error.message} ${error.stderr ?? ""}`, new RegExp(code));
  return true;
};
const addresses = ["example.com. 1 IN A 127.0.0.1", "*.example.com. 1 IN A 127.0.0.1"];

// Domain Verification
const { verificationId, record, instructions } = await freestyle.domains.verifications.create({ domain: "example.com" });
assert.equal(record.type, "TXT");
assert.equal(record.name, "_freestyle_custom_hostname.example.com");
assert.ok(verificationId && record.value && instructions.length > 0);
const pending = await freestyle.domains.verifications.list();
assert.ok(pending.some(({ domain, verificationCode }) => domain === "example.com" && verificationCode === record.value));
await publish(...addresses);
await assert.rejects(freestyle.domains.verifications.complete({ domain: "example.com" }), fails("VERIFICATION_FAILED"));
say("no proof without the record");
const proof = `_freestyle_custom_hostname.example.com. 1 IN TXT "${record.value}"`;
await publish(...addresses, `_freestyle_custom_hostname.example.com. 1 IN TXT "something else"`, proof);
assert.equal((await freestyle.domains.verifications.complete({ verificationId })).domain, "example.com");
const owned = await freestyle.domains.list({ limit: 50 });
assert.ok(owned.some(({ domain, verifiedDns }) => domain === "example.com" && verifiedDns === true));
say("proved");
const given = await freestyle.domains.verifications.create({ domain: "other.org" });
const cancelled = await freestyle.domains.verifications.cancel({ domain: "other.org", verificationCode: given.record.value });
assert.deepEqual(cancelled, { domain: "other.org", verificationCode: given.record.value });
await assert.rejects(freestyle.domains.verifications.complete({ domain: "other.org" }), fails("VERIFICATION_NOT_FOUND"));

// Domains, Mappings, DNS
const domain = "app.example.com";
const { vm, vmId } = await freestyle.vms.create();
await vm.fs.writeTextFile("/root/server.py", await readFile(server, "utf8"));
for (const [port, page] of [[3000, "the app"], [8453, "the terminal"], [8080, PAGE]]) {
  const unit = await vm.exec(`systemd-run --unit=page${port} python3 /root/server.py ${port} '${page}'`);
  assert.equal(unit.statusCode, 0, unit.stderr);
  const listens = await vm.exec({
    command: `curl -sf --retry 600 --retry-connrefused --retry-delay 1 -o /dev/null http://127.0.0.1:${port}/`,
    timeoutMs: 300_000,
  });
  assert.equal(listens.statusCode, 0, listens.stderr);
}
const mapping = await freestyle.domains.mappings.create({ domain, vmId, vmPort: 3000 });
assert.deepEqual([mapping.domain, mapping.vmId, mapping.vmPort], [domain, vmId, 3000]);
say("mapped");
const answers = (name, page) => until(`${name} is served`, () => curl(`https://${name}/`).then((said) => said === page, () => false));
await answers(domain, "the app");
say("certified by the authority, and served");
assert.equal(await curl("--http2", "-w", " %{http_version}", `https://${domain}/`), "the app 2");
await freestyle.domains.mappings.create({ domain: "terminal.example.com", vmId, vmPort: 8453 });
await answers("terminal.example.com", "the terminal");
await answers(domain, "the app");
const { mappings } = await freestyle.domains.mappings.list({ domain, limit: 50 });
assert.deepEqual(mappings.map((one) => [one.domain, one.vmId, one.vmPort]), [[domain, vmId, 3000]]);
say("two ports by two names");
await assert.rejects(freestyle.domains.mappings.create({ domain: "app.example.net", vmId, vmPort: 1 }), (error) => {
  assert.ok(error instanceof Errors.DomainOwnershipNotVerifiedError || /DOMAIN_OWNERSHIP_NOT_VERIFIED/.test(error.message), error.message);
  return true;
});
await freestyle.domains.mappings.delete({ domain });
assert.equal(await curl("-o", "/dev/null", "-w", "%{http_code}", `https://terminal.example.com/`), "200");
await assert.rejects(curl(`https://${domain}/`), fails("unrecognized name"));
assert.ok((await freestyle.domains.list()).some((one) => one.domain === "example.com"), "the proof stays");
await freestyle.domains.mappings.create({ domain, vmId, vmPort: 8453 });
await answers(domain, "the terminal");
say("unmapped, and mapped again to another port without a new proof");

// What a person sees
await freestyle.domains.mappings.create({ domain: "page.example.com", vmId, vmPort: 8080 });
await answers("page.example.com", PAGE);
say(`Chromium shows a page with a WebSocket, by HTTP/2 and ${await visit("page.example.com", root)}`);

// Certificates by DNS
await publish(...addresses, "_acme-challenge.example.com. 1 IN NS dns.style.dev.", "dns.style.dev. 1 IN A 127.0.0.2");
assert.deepEqual(await freestyle.domains.certificates.createWildcard({ domain: "example.com" }), { domain: "example.com" });
await freestyle.domains.mappings.create({ domain: "*.example.com", vmId, vmPort: 3000 });
await answers("anything.example.com", "the app");
const ca = await readFile(root);
const shown = await new Promise((resolve, reject) => {
  const socket = tls.connect({ host: "127.0.0.1", port: 443, servername: "anything.example.com", ca }, () => {
    resolve(socket.getPeerCertificate().subjectaltname);
    socket.end();
  });
  socket.on("error", reject);
});
assert.equal(shown, "DNS:*.example.com");
await answers(domain, "the terminal");
await freestyle.domains.mappings.delete({ domain: "*.example.com" });
say("all names below a domain, certified by the house's own DNS, to which their proof is delegated");

// At the creation of a VM
const second = await freestyle.vms.create({ domains: [{ domain: "second.example.com", vmPort: 3000 }] });
assert.deepEqual((await freestyle.domains.mappings.list({ domain: "second.example.com" })).mappings.map((one) => one.vmId), [second.vmId]);
await second.vm.delete();
say("by the VM's own wish, and gone with it");

// Domains CLI
assert.match(await cli("domains", "--help"), /verify/);
assert.match(await cli("domains", "verify", "shop.example.org"), /_freestyle_custom_hostname\.shop\.example\.org/);
assert.match(await cli("domains", "verifications"), /shop\.example\.org/);
await assert.rejects(cli("domains", "complete", "--domain", "shop.example.org"));
const [{ verificationCode }] = (await freestyle.domains.verifications.list()).filter((one) => one.domain === "shop.example.org");
await publish(...addresses, "shop.example.org. 1 IN A 127.0.0.1", `_freestyle_custom_hostname.shop.example.org. 1 IN TXT "${verificationCode}"`);
await cli("domains", "complete", "--domain", "shop.example.org");
assert.match(await cli("domains", "list"), /shop\.example\.org/);
assert.ok(JSON.stringify(JSON.parse(await cli("domains", "list", "--json"))).includes("shop.example.org"));
await cli("domains", "map", "shop.example.org", "--vm-id", vmId, "--vm-port", "3000");
assert.match(await cli("domains", "mappings", "--domain", "shop.example.org"), /shop\.example\.org/);
await answers("shop.example.org", "the app");
await cli("domains", "unmap", "shop.example.org");
say("the same by the command line");

await vm.delete();
say("deleted");
