// Chromium, as it comes, at a page that talks to its own server by WebSocket. Settings: WORLD_ROOT, the one certificate that
// it trusts besides its own; OUT, where its picture of the page is kept.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { PNG } from "pngjs";
import puppeteer from "puppeteer-core";

const run = promisify(execFile);
// Longest for each step: the browser's first start under emulation takes a minute.
const PATIENCE_MS = 240_000;
const TRIES = 20;
const SIZE = { width: 640, height: 400 };
const WORD = "there and back";

/// A page for the server of the guest. Its script writes down what comes back on the WebSocket.
export const PAGE = `<!doctype html><html lang=en><title>A page of a machine</title><body style="background:#fff;color:#036">
<h1>A page of a machine</h1><p id=echo>nothing yet</p><script>
const socket = new WebSocket("wss://" + location.host + "/");
socket.onopen = () => socket.send("${WORD}");
socket.onmessage = ({ data }) => { document.getElementById("echo").textContent = data; };
</script>`.replaceAll("\n", " ");

/// Opens it, and wants a good certificate, HTTP/2, the echo, and a picture on which something is to be seen.
export const visit = async (host, root) => {
  const home = await mkdtemp(join(tmpdir(), "browser-"));
  const browser = await launch(home, root);
  try {
    const page = await browser.newPage();
    page.setDefaultTimeout(PATIENCE_MS);
    const answer = await open(page, `https://${host}/`);
    assert.equal(answer.status(), 200);
    const facts = answer.securityDetails();
    assert.ok(facts.subjectAlternativeNames().includes(host), `certified: ${facts.subjectAlternativeNames()}`);
    assert.match(facts.issuer(), /Pebble/);
    await page.waitForFunction((word) => document.getElementById("echo").textContent === word, {}, WORD);
    const protocol = await page.evaluate(() => performance.getEntriesByType("navigation")[0].nextHopProtocol);
    assert.equal(protocol, "h2");
    const picture = await page.screenshot({ type: "png" });
    await keep(picture);
    assert.ok(colours(picture) > 1, "the picture has one colour");
    // What is certified by nobody that it knows, it does not open: the root is why it opened the other.
    await assert.rejects(open(page, "https://api.style.dev/"), /ERR_CERT_AUTHORITY_INVALID/);
    return facts.protocol();
  } finally {
    await browser.close();
    await rm(home, { recursive: true, force: true, maxRetries: 5 });
  }
};

/// The door closes connections on which a client is silent for 15 s, as a browser that starts under emulation may be; and
/// where the VM has fallen asleep meanwhile, it shows a page of its own until that has woken.
const open = async (page, url) => {
  for (let left = TRIES; ; left -= 1) {
    try {
      const answer = await page.goto(url, { timeout: PATIENCE_MS });
      if (answer.status() !== 503 || left === 1) return answer;
    } catch (error) {
      if (left === 1 || !/ERR_(SOCKET_NOT_CONNECTED|CONNECTION_(CLOSED|RESET)|EMPTY_RESPONSE)/.test(error.message)) throw error;
    }
  }
};

const launch = async (home, root) => {
  const database = join(home, ".pki/nssdb");
  await mkdir(database, { recursive: true });
  await run("certutil", ["-N", "-d", `sql:${database}`, "--empty-password"]);
  await run("certutil", ["-A", "-d", `sql:${database}`, "-n", "root", "-t", "C,,", "-i", root]);
  return puppeteer.launch({
    executablePath: "/usr/bin/chromium",
    userDataDir: join(home, "profile"),
    env: { PATH: process.env.PATH, HOME: home },
    // Its sandbox wants another user than root, and /dev/shm may be small. With no processes of their own for graphics and
    // for the network it shows a page sooner under emulation.
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--in-process-gpu",
      "--enable-features=NetworkServiceInProcess2",
      "--disable-dev-shm-usage",
      "--host-resolver-rules=MAP * 127.0.0.1",
    ],
    defaultViewport: SIZE,
    timeout: PATIENCE_MS,
    protocolTimeout: PATIENCE_MS,
  });
};

const keep = async (picture) => {
  if (process.env.OUT) await writeFile(join(process.env.OUT, "page.png"), picture);
};

/// How many colours a picture of the wanted size has.
const colours = (picture) => {
  const { width, height, data } = PNG.sync.read(Buffer.from(picture));
  assert.deepEqual({ width, height }, SIZE);
  return new Set(Array.from({ length: width * height }, (_, place) => data.readUInt32BE(place * 4))).size;
};
