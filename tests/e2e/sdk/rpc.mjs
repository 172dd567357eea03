// Drives the guest's JSON-RPC service over raw TCP: node rpc.mjs HOST PORT TOKEN. Prints what it was told.
import net from "node:net";

const [host, port, token] = process.argv.slice(2);
const socket = net.connect(Number(port), host);
let waiting = Buffer.alloc(0);
const answers = new Map();
const told = [];
let idle;
const quiet = new Promise((resolve) => (idle = resolve));

const hear = (message) => {
  if (message.id !== undefined) answers.get(message.id)(message);
  else if (message.method === "session.idle") idle();
  else told.push(`${message.method}: ${message.params.text.trim()}`);
};
socket.on("data", (bytes) => {
  waiting = Buffer.concat([waiting, bytes]);
  for (;;) {
    const end = waiting.indexOf("\r\n\r\n");
    if (end < 0) return;
    const length = Number(/content-length: *(\d+)/i.exec(waiting.subarray(0, end).toString())[1]);
    if (waiting.length < end + 4 + length) return;
    hear(JSON.parse(waiting.subarray(end + 4, end + 4 + length).toString()));
    waiting = waiting.subarray(end + 4 + length);
  }
});
socket.on("error", (error) => {
  console.error(error.message);
  process.exit(1);
});
const ask = (id, method, params) =>
  new Promise((resolve) => {
    answers.set(id, resolve);
    const body = JSON.stringify({ jsonrpc: "2.0", id, method, params });
    socket.write(`Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`);
  });

const known = await ask(1, "connect", { token });
if (known.error) {
  console.log(known.error.message);
  process.exit(3);
}
await ask(2, "session.send", { prompt: "run hostname there", tool: ["hostname"] });
await quiet;
console.log(told.join("\n"));
socket.end();
