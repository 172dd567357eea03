// npm's ssh2 through the front. Arguments as in common.py.
const assert = require("node:assert");
const { once } = require("node:events");
const fs = require("node:fs");
const path = require("node:path");
const { promisify } = require("node:util");
const { createRequire } = require("node:module");
// The packages stand where the tests installed them.
const { Client } = createRequire(path.join(process.cwd(), "here.cjs"))("ssh2");

const [feature, port, username, password, knownHosts, folder, service] = process.argv.slice(2);
const echoed = Buffer.alloc(300_000, 7);

const known = fs.readFileSync(knownHosts, "utf8").split("\n").map((line) => line.split(" "))
  .filter(([host]) => host === `[127.0.0.1]:${port}`).map(([, , key]) => key);

async function collect(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return Buffer.concat(chunks);
}

async function until(stream, mark) {
  let heard = "";
  while (!heard.includes(mark)) {
    const chunk = stream.read();
    if (chunk === null) await once(stream, "readable");
    else heard += chunk;
  }
  return heard;
}

const features = {
  async command(client) {
    const stream = await promisify(client.exec).call(client, "cat; echo err >&2; exit 9");
    const closed = once(stream, "close");
    stream.end("in");
    const [out, err] = await Promise.all([collect(stream), collect(stream.stderr)]);
    assert.deepEqual([String(out), String(err), (await closed)[0]], ["in", "err\n", 9]);
  },
  async terminal(client) {
    const stream = await promisify(client.shell).call(client, { term: "xterm", rows: 33, cols: 77 });
    const closed = once(stream, "close");
    stream.write("stty size; tty; echo e''nd\n");
    assert.match(await until(stream, "end\r\n"), /33 77[^]*\/dev\/pts\//);
    stream.setWindow(44, 88, 0, 0);
    stream.write("stty size; echo e''nd\n");
    assert.match(await until(stream, "end\r\n"), /44 88/);
    stream.write("exit 5\n");
    stream.resume();
    assert.equal((await closed)[0], 5);
  },
  async files(client) {
    const sftp = await promisify(client.sftp).call(client);
    const at = (name) => path.join(folder, name);
    await promisify(sftp.fastPut).call(sftp, at("blob"), at("far"));
    await promisify(sftp.fastGet).call(sftp, at("far"), at("back"));
  },
  async forward(client) {
    const stream = await promisify(client.forwardOut).call(client, "127.0.0.1", 1, "127.0.0.1", Number(service));
    stream.end(echoed);
    const heard = await collect(stream);
    assert.equal(String(heard.subarray(0, 6)), "hello\n");
    assert.ok(heard.subarray(6).equals(echoed));
  },
  async many(client) {
    await Promise.all(Array.from({ length: 30 }, async (_, number) => {
      const stream = await promisify(client.exec).call(client, "cat");
      stream.end(String(number));
      assert.equal(String(await collect(stream)), String(number));
    }));
  },
};

(async () => {
  const client = new Client();
  const ready = once(client, "ready");
  client.connect({
    host: "127.0.0.1", port: Number(port), username, password,
    hostVerifier: (key) => known.includes(key.toString("base64")),
  });
  await ready;
  await features[feature](client);
  client.end();
  console.log("good");
})();
