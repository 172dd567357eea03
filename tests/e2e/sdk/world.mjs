// The world's DNS: what stands in its one zone, besides what was there. Settings: WORLD_ZONE, the name server's file, and
// WORLD_DNS_PID to tell it of changes; WORLD_DNS, where it is.
import assert from "node:assert/strict";
import { promises as dns } from "node:dns";
import { readFile, writeFile } from "node:fs/promises";

const zone = process.env.WORLD_ZONE;

/// Looks again until it is so: neither a name server nor an authority tells.
export const until = async (what, look, { patience = 120_000, pause = 200 } = {}) => {
  for (const end = Date.now() + patience; Date.now() < end; ) {
    const found = await look();
    if (found) return found;
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
  assert.fail(`never: ${what}`);
};

const resolver = new dns.Resolver({ timeout: 2000, tries: 2 });
resolver.setServers([process.env.WORLD_DNS]);
const begin = await readFile(zone, "utf8");
let serial = 1;
export const publish = async (...records) => {
  serial += 1;
  const mark = `mark.root. 1 IN TXT "${serial}"\n`;
  await writeFile(zone, begin.replace(" 1 3600", ` ${serial} 3600`) + records.map((record) => `${record}\n`).join("") + mark);
  process.kill(Number(process.env.WORLD_DNS_PID), "SIGHUP");
  await until("the name server has it", async () => {
    const told = await resolver.resolveTxt("mark.root").catch(() => []);
    return told.flat().includes(String(serial));
  });
};
