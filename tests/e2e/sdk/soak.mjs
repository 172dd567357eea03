// Mixed load on a house for SOAK_SECONDS: VMs sleep and wake, names move, certificates are renewed; meanwhile its daemons are
// killed by somebody else, from when the file `begun` in SOAK_FOLDER is there until the file `over` is; who makes `round` when
// each was killed once, and `spared` when none is any more. What happened is in `journal` there. SOAK_SEED repeats the choices
// of each who acts here, though not their order.
import assert from "node:assert/strict";
import { access, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { freestyle } from "freestyle";
import {
  PORT, ask, certificate, download, echo, endSessions, note, observe, pause, reason, socket, ssh, who, whoByHttp2, write,
} from "./clients.mjs";
import { publish, until } from "./world.mjs";

const { GATEHOUSE_SERVER: server, SOAK_FOLDER: folder } = process.env;
const seconds = Number(process.env.SOAK_SECONDS);
const started = Date.now();
const say = (what) => console.log(`${((Date.now() - started) / 1000).toFixed(1)} s  ${what}`);
// Longest for a call of the API, with the death of whoever was to answer it, and between two tries.
const CALL_MS = 180_000;
const AGAIN_MS = 500;
const BUSY = 3;
const IDLE_SECONDS = 5;
// For what may take long, without a load of questions.
const SELDOM = { patience: 600_000, pause: 1000 };
// How often a WebSocket is used before it is closed.
const ECHOES = 12;

/// Numbers of chance, of the seed and who draws them (mulberry32).
const chance = (whose) => {
  let state = Number(process.env.SOAK_SEED) ^ [...whose].reduce((sum, letter) => (sum * 31 + letter.charCodeAt(0)) | 0, 7);
  const number = () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  return { within: (least, most) => least + number() * (most - least), of: (all) => all[Math.floor(number() * all.length)] };
};

/// Makes a call of the API until it is answered: control, or what it asks, may be killed under it.
const persist = async (call, done = () => false) => {
  for (const end = Date.now() + CALL_MS; ; ) {
    try {
      return await call();
    } catch (error) {
      if (done(error)) return undefined;
      note({ what: "again", error: reason(error) });
      assert.ok(Date.now() < end, error);
      await pause(AGAIN_MS);
    }
  }
};
const run = async (vm, command, timeoutMs = 300_000) => {
  const done = await vm.exec({ command, timeoutMs });
  assert.equal(done.statusCode, 0, `${command}: ${done.stderr}`);
  return done.stdout;
};

// Where each name leads, as far as it was asked for; who is let alone, to fall asleep; what was acknowledged.
const owner = new Map();
const quiet = new Set();
const acknowledged = new Map();

/// Leads a name to a VM, or nowhere, and waits until that is seen.
const lead = async (host, vmId) => {
  const from = Date.now();
  if (vmId) await persist(() => freestyle.domains.mappings.create({ domain: host, vmId, vmPort: PORT }));
  else await persist(() => freestyle.domains.mappings.delete({ domain: host }), (error) => /NOT_FOUND/.test(error.message));
  await until(`${host} leads to ${vmId}`, async () => {
    try {
      if (vmId) return (await who(host, { agent: false })).vm === vmId;
      const { status, headers } = await ask(host, "/who", { agent: false });
      return status >= 400 && status < 500 && !headers["x-vm"];
    } catch (error) {
      // The TLS alert: nobody's name has no certificate.
      return !vmId && /unrecognized.name/i.test(reason(error));
    }
  }, SELDOM);
  note({ what: "mapping", host, vm: vmId, from, to: Date.now() });
  owner.set(host, vmId);
};

// A domain, a VM that serves, and copies of it.
const domain = "example.com";
const { verificationId, record } = await freestyle.domains.verifications.create({ domain });
await publish(...[domain, `*.${domain}`].map((name) => `${name}. 1 IN A 127.0.0.1`), `${record.name}. 1 IN TXT "${record.value}"`);
await freestyle.domains.verifications.complete({ verificationId });
const { vm: first, vmId: firstId } = await freestyle.vms.create({ name: "soak", idleTimeoutSeconds: null });
await run(first, "until systemctl is-system-running --wait 2>/dev/null | grep -qE 'running|degraded'; do sleep 1; done");
for (const name of ["server.py", "soak.py"]) {
  await first.fs.writeTextFile(`/root/${name}`, await readFile(join(dirname(server), name), "utf8"));
}
await first.fs.writeTextFile("/root/name", firstId);
await run(first, `systemd-run --unit=soak python3 /root/soak.py ${PORT} page /root/name /root/ledger`);
await run(first, `curl -sf --retry 600 --retry-connrefused --retry-delay 1 -o /dev/null http://127.0.0.1:${PORT}/who`);
say("a VM serves");
const certified = ["still", "app", "shop"].map((name) => `${name}.${domain}`);
await Promise.all(certified.map((host) => lead(host, firstId)));
say("its names are certified");
const { snapshotId } = await first.snapshot({ name: "soak" });
const copy = async (idleTimeoutSeconds) => {
  const { vm, vmId } = await freestyle.vms.create({ snapshotId, idleTimeoutSeconds });
  await vm.fs.writeTextFile("/root/name", vmId);
  return { vm, vmId };
};
const busy = [{ vm: first, vmId: firstId }];
while (busy.length < BUSY) busy.push(await copy(null));
const dozer = await copy(IDLE_SECONDS);
const machines = new Map([...busy, dozer].map(({ vm, vmId }) => [vmId, vm]));
const { identity, identityId } = await freestyle.identities.create();
for (const vmId of machines.keys()) await identity.permissions.vms.grant({ vmId });
const { token } = await identity.tokens.create();
for (const [place, host] of ["one.style.dev", "two.style.dev"].entries()) await lead(host, busy[place + 1].vmId);
await lead("three.style.dev", dozer.vmId);
const moving = ["one.style.dev", "two.style.dev", ...certified.slice(1)];
const asked = [certified[0], ...moving];
say(`${machines.size} VMs serve ${owner.size} names`);

// Those who act, until it is over.
let over = false;
const loop = async (whose, act) => {
  const draw = chance(whose);
  while (!over) await act(draw);
};
const attempt = async (what, act) => {
  try {
    await act();
  } catch (error) {
    throw new Error(`${what}: ${error.message}`, { cause: error });
  }
};
/// A name whose VM is not let alone.
const choose = (draw) => {
  const fit = asked.filter((host) => owner.get(host) && !quiet.has(owner.get(host)));
  return draw.of(fit.length ? fit : [certified[0]]);
};
const client = (kind, act, least = 400, most = 1200) => (number) =>
  loop(`${kind}${number}`, async (draw) => {
    const host = choose(draw);
    const { vm, wrote } = await observe(kind, host, () => act(host));
    if (wrote) acknowledged.set(vm, [...(acknowledged.get(vm) ?? []), wrote]);
    await pause(draw.within(least, most));
  });
const sockets = (number) =>
  loop(`socket${number}`, async (draw) => {
    const host = choose(draw);
    let open;
    const { vm, error } = await observe("socket", host, async () => {
      open = await socket(host);
      // That it ends is noticed by the next echo.
      open.made.on("error", () => {});
      return open.facts;
    });
    for (let count = 0; !error && !over && count < ECHOES; count++) {
      while (quiet.has(vm) && !over) await pause(100);
      if ((await observe("echo", host, () => echo(open.made))).error) break;
      await pause(draw.within(500, 1500));
    }
    open?.made.close();
    await pause(draw.within(200, 600));
  });
const login = async (vm) => {
  const entry = { what: "ssh", vm, from: Date.now() };
  try {
    entry.said = (await ssh(`${vm}:${token}`, "cat /root/name")).trim();
  } catch (error) {
    entry.error = reason(error);
  }
  note({ ...entry, to: Date.now() });
  return entry;
};
const logins = () =>
  loop("ssh", async (draw) => {
    const vm = draw.of([...machines.keys()].filter((one) => !quiet.has(one) && one !== dozer.vmId));
    await login(vm ?? firstId);
    await pause(draw.within(3000, 6000));
  });
const shown = new Map(certified.map((host) => [host, new Set()]));
const certificates = () =>
  loop("certificates", async (draw) => {
    for (const host of certified) {
      await observe("fresh", host, async () => {
        const serial = await certificate(host);
        note({ what: "certificate", host, serial });
        shown.get(host).add(serial);
        return {};
      });
    }
    await pause(draw.within(4000, 8000));
  });
const mapper = () =>
  loop("mapper", async (draw) => {
    await pause(draw.within(4000, 10_000));
    const host = draw.of(moving);
    const places = busy.map(({ vmId }) => vmId).filter((vmId) => vmId !== owner.get(host));
    const to = draw.of(places.filter((vmId) => !quiet.has(vmId))) ?? draw.of(places);
    if (draw.within(0, 1) < 0.25) {
      await attempt("unmap", () => lead(host, null));
      await pause(draw.within(500, 2000));
    }
    await attempt("map", () => lead(host, to));
  });

/// The first question to a VM that sleeps.
const wake = async (draw, { vm, vmId }) => {
  const host = draw.of([...owner].filter(([, to]) => to === vmId).map(([name]) => name));
  if (!host) return persist(() => run(vm, "true"));
  const { error, vm: by, from, to } = await observe("wake", host, () => who(host));
  if (!error && by === vmId) note({ what: "woken", ms: to - from });
};
/// Asks a VM to sleep; says whether it does.
const sleep = async (vm) => {
  try {
    await vm.suspend();
    return true;
  } catch (error) {
    note(/traffic came/.test(error.message) ? { what: "disturbed" } : { what: "again", error: reason(error) });
    return false;
  }
};
const sleeper = () =>
  loop("sleeper", async (draw) => {
    await pause(draw.within(6000, 12_000));
    const one = draw.of(busy);
    quiet.add(one.vmId);
    await pause(draw.within(1500, 4000));
    const sleeps = await sleep(one.vm);
    if (sleeps) {
      note({ what: "slept", idle: false });
      await pause(draw.within(0, 3000));
    }
    quiet.delete(one.vmId);
    if (sleeps) await wake(draw, one);
  });
const dozing = () =>
  loop("dozer", async (draw) => {
    await observe("h1", "three.style.dev", () => who("three.style.dev"));
    await until("it falls asleep", async () => over || (await persist(() => dozer.vm.getInfo())).state === "suspended", SELDOM);
    if (over) return;
    note({ what: "slept", idle: true });
    await pause(draw.within(5000, 15_000));
    await wake(draw, dozer);
  });
const snapshot = async () => {
  await pause((seconds * 1000) / 2);
  const { vm, vmId } = busy[1];
  const least = acknowledged.get(vmId) ?? [];
  const taken = await persist(() => vm.snapshot({ name: "half" }));
  const made = await persist(() => freestyle.vms.create({ snapshotId: taken.snapshotId, idleTimeoutSeconds: null }));
  const ids = await persist(() => made.vm.fs.readTextFile("/root/ledger"));
  note({ what: "copy", of: vmId, least, ids: ids.trim().split("\n") });
  await persist(() => made.vm.delete(), (error) => /NOT_FOUND/.test(error.message));
  say("a snapshot came to life");
};

const there = (name) => access(join(folder, name)).then(() => true, () => false);
await writeFile(join(folder, "begun"), "");
const all = [
  client("h1", who)(1), client("h2", whoByHttp2)(1), client("write", write)(1), client("long", download, 4000, 8000)(1),
  sockets(1), logins(), certificates(), mapper(), sleeper(), dozing(), snapshot(),
];
await Promise.race([pause(seconds * 1000), Promise.all(all)]);
await until("each daemon was killed once", () => there("round"), SELDOM);
await until("all certificates were renewed", async () => [...shown.values()].every(({ size }) => size > 1), SELDOM);
over = true;
await Promise.all(all);
await writeFile(join(folder, "over"), "");
await until("nobody is killed any more", () => there("spared"));
// The doors of those who were killed last answer, too.
await until("the door answers", async () => !(await observe("h1", certified[0], () => who(certified[0]))).error, SELDOM);
await until("SSH answers", async () => !(await login(firstId)).error, SELDOM);
endSessions();
say("the load is over");

// What stands on the disks, after one more sleep.
for (const [vmId, vm] of machines) {
  await until(`${vmId} sleeps`, () => sleep(vm));
  await persist(() => run(vm, "sync && echo 3 >/proc/sys/vm/drop_caches"));
  const ids = (await vm.fs.readTextFile("/root/ledger")).split("\n").filter((line) => line !== "");
  note({ what: "ledger", vm: vmId, ids });
}
const { vms } = await freestyle.vms.list();
for (const { id, state } of vms) assert.ok(["running", "suspended"].includes(state), `${id} is ${state}`);
// A creation under which control was killed may have made a VM that nobody was told of.
for (const { id } of vms) await freestyle.vms.delete({ vmId: id });
for (const { snapshotId: id } of (await freestyle.vms.snapshots.list()).snapshots) {
  await freestyle.vms.snapshots.delete({ snapshotId: id });
}
await freestyle.identities.delete({ identityId });
say("all gone");
