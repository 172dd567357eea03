// Six machines at once, each with a page of its own, then all gone.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { freestyle } from "freestyle";

const run = promisify(execFile);
const ca = process.env.GATEHOUSE_CA;
const names = ["one", "two", "three", "four", "five", "six"];
const started = Date.now();
const say = (what) => console.log(`${((Date.now() - started) / 1000).toFixed(1)} s  ${what}`);

const made = await Promise.all(names.map(async (name) => {
  const { vm, vmId } = await freestyle.vms.create({ name, readySignalTimeoutSeconds: 900 });
  say(`created ${name}`);
  // The agent answers while the guest still boots. Six at once on one emulated core take their time, and what is asked
  // of systemd before gives up after 25 s.
  const settled = "until systemctl is-system-running --wait 2>/dev/null | grep -qE 'running|degraded'; do sleep 1; done";
  assert.equal((await vm.exec({ command: settled, timeoutMs: 900_000 })).statusCode, 0);
  say(`${name} has booted`);
  await vm.exec(`mkdir -p /srv/page && echo 'page ${name}' >/srv/page/index.html`);
  const unit = await vm.exec("systemd-run --unit=page --working-directory=/srv/page python3 -m http.server 8080");
  assert.equal(unit.statusCode, 0, unit.stderr);
  const up = await vm.exec({
    command: "curl -sf --retry 600 --retry-connrefused --retry-delay 1 -o /dev/null http://127.0.0.1:8080/",
    timeoutMs: 600_000,
  });
  assert.equal(up.statusCode, 0);
  await freestyle.domains.mappings.create({ domain: `${name}.style.dev`, vmId, vmPort: 8080 });
  return { name, vmId };
}));
say("all serve");
await Promise.all(made.map(async ({ name }) => {
  const { stdout } = await run("curl", ["-sS", "--cacert", ca, "--max-time", "180", `https://${name}.style.dev/`]);
  assert.equal(stdout, `page ${name}\n`);
}));
say("each answers with its own page");
assert.equal((await freestyle.vms.list()).runningCount, 6);
await Promise.all(made.map(({ vmId }) => freestyle.vms.delete({ vmId })));
assert.equal((await freestyle.vms.list()).totalCount, 0);
say("all gone");
