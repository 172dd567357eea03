// The soak's clients, each of another kind, and the journal in which they write what they saw (its lines are read by
// tests/src/soak/journal.rs). All names lead to the house's door.
import { spawn } from "node:child_process";
import { openSync, readFileSync, writeSync } from "node:fs";
import http2 from "node:http2";
import https from "node:https";
import tls from "node:tls";
import WebSocket from "ws";

// Longest that one request may take: a wake beside all the rest under emulation, and a daemon that is killed meanwhile.
const REQUEST_MS = 90_000;
// A client that keeps connections longer than the door does would have to expect that they end under a request.
const KEEP_MS = 20_000;
export const PORT = 3000;
const PIECES = 24;
const PIECE = 1 << 14;

const ca = [readFileSync(process.env.GATEHOUSE_CA), readFileSync(process.env.WORLD_ROOT)];
const lookup = (_, options, tell) =>
  options.all ? tell(null, [{ address: "127.0.0.1", family: 4 }]) : tell(null, "127.0.0.1", 4);
const kept = new https.Agent({ keepAlive: true, timeout: KEEP_MS, ca, lookup });
const journal = openSync(`${process.env.SOAK_FOLDER}/journal`, "a");

export const note = (entry) => writeSync(journal, `${JSON.stringify(entry)}\n`);
export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const inTime = (what) => AbortSignal.timeout(what ?? REQUEST_MS);
const reason = (error) => `${error.code ?? error.name} ${error.message}`.replaceAll(/[0-9a-f]{8,}:|:\d{4,}/gi, "").slice(0, 160);

/// Writes down what came of a request.
export const observe = async (kind, host, act) => {
  const entry = { what: "request", kind, host, from: Date.now() };
  try {
    Object.assign(entry, await act());
  } catch (error) {
    Object.assign(entry, { error: reason(error), vm: error.vm });
  }
  entry.to = Date.now();
  note(entry);
  return entry;
};

/// The right answer, and whose it is; or an error that says what came instead.
const judged = ({ status, headers, body }, expected) => {
  const vm = headers["x-vm"];
  if (status === 200 && vm && expected.equals(body)) return { vm, seen: headers["x-host"] };
  const what = body.toString().replaceAll(/<[^>]*>|\s+/g, " ").trim().slice(0, 80);
  throw Object.assign(new Error(status === 200 ? `another body, of ${body.length} bytes` : `status ${status} ${what}`), { vm });
};

/// By HTTP/1.1, over a connection that is kept, unless `agent` says otherwise.
export const ask = (host, path, { method = "GET", agent = kept } = {}) =>
  new Promise((resolve, reject) => {
    const request = https.request({ host, path, method, agent, ca, lookup, servername: host, signal: inTime() }, (answer) => {
      const parts = [];
      answer.on("data", (part) => parts.push(part));
      answer.on("error", reject);
      answer.on("end", () => resolve({ status: answer.statusCode, headers: answer.headers, body: Buffer.concat(parts) }));
    });
    request.on("error", reject);
    request.end();
  });

let asked = 0;
const nonce = () => `${++asked}`;
export const who = async (host, options) => {
  const word = nonce();
  return judged(await ask(host, `/who?${word}`, options), Buffer.from(word));
};
export const write = async (host) => {
  const word = nonce();
  return { ...judged(await ask(host, `/write?${word}`, { method: "POST" }), Buffer.from(word)), wrote: word };
};
const long = Buffer.concat(Array.from({ length: PIECES }, (_, number) => Buffer.from(`${number} `.padEnd(PIECE, "."))));
export const download = async (host) => judged(await ask(host, `/long?${PIECES}`), long);

// One session for each name, until it ends.
const sessions = new Map();
const session = (host) => {
  const old = sessions.get(host);
  if (old && !old.closed && !old.destroyed) return old;
  const made = http2.connect(`https://${host}`, { ca, lookup, servername: host });
  const forget = () => sessions.get(host) === made && sessions.delete(host);
  // What goes wrong with it goes wrong with its streams.
  made.on("error", forget).on("goaway", forget).on("close", forget);
  sessions.set(host, made);
  return made;
};
export const whoByHttp2 = (host) =>
  new Promise((resolve, reject) => {
    const word = nonce();
    const stream = session(host).request({ ":authority": host, ":path": `/who?${word}` }, { signal: inTime() });
    const parts = [];
    let headers;
    stream.on("response", (said) => (headers = said));
    stream.on("data", (part) => parts.push(part));
    stream.on("error", reject);
    stream.on("close", () => {
      if (!headers || !stream.readableEnded) return reject(new Error("the stream broke off"));
      try {
        resolve(judged({ status: headers[":status"], headers, body: Buffer.concat(parts) }, Buffer.from(word)));
      } catch (error) {
        reject(error);
      }
    });
    stream.end();
  });
export const endSessions = () => {
  for (const one of sessions.values()) one.destroy();
  kept.destroy();
};

/// An open WebSocket, and whose it is.
export const socket = (host) =>
  new Promise((resolve, reject) => {
    const made = new WebSocket(`wss://${host}/`, { ca, lookup, servername: host, handshakeTimeout: REQUEST_MS });
    let facts;
    made.on("upgrade", ({ headers }) => (facts = { vm: headers["x-vm"], seen: headers["x-host"] }));
    made.on("unexpected-response", (_, answer) => reject(new Error(`status ${answer.statusCode}`)));
    made.on("error", reject);
    made.on("open", () => resolve({ made, facts }));
  });
export const echo = (made) =>
  new Promise((resolve, reject) => {
    const word = nonce();
    const late = setTimeout(() => end(reject, new Error("no echo")), REQUEST_MS);
    const heard = (data) => end(...(data.toString() === word ? [resolve, {}] : [reject, new Error("another echo")]));
    const closed = (code) => end(reject, new Error(`the WebSocket ended with ${code}`));
    const end = (how, what) => {
      clearTimeout(late);
      made.off("message", heard).off("close", closed);
      how(what);
    };
    if (made.readyState !== WebSocket.OPEN) return end(reject, new Error("the WebSocket has ended"));
    made.on("message", heard).on("close", closed);
    made.send(word);
  });

/// The number of the certificate that a fresh connection is shown.
export const certificate = (host) =>
  new Promise((resolve, reject) => {
    const made = tls.connect({ host: "127.0.0.1", port: 443, servername: host, ca, timeout: REQUEST_MS }, () => {
      resolve(made.getPeerCertificate().serialNumber);
      made.destroy();
    });
    made.on("timeout", () => made.destroy(new Error("no handshake")));
    made.on("error", reject);
  });

/// What a command in the VM says.
export const ssh = (login, command) =>
  new Promise((resolve, reject) => {
    const child = spawn("ssh", ["-T", `${login}@vm-ssh.freestyle.sh`, command], { timeout: REQUEST_MS, stdio: ["ignore", "pipe", "pipe"] });
    const said = { stdout: "", stderr: "" };
    for (const stream of ["stdout", "stderr"]) child[stream].on("data", (data) => (said[stream] += data));
    child.on("error", reject);
    child.on("close", (status, signal) =>
      status === 0 ? resolve(said.stdout) : reject(new Error(`${signal ?? status}: ${said.stderr.trim().replaceAll(/\s+/g, " ").slice(-120)}`)));
  });
export { reason };
