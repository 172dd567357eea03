// The public command line, unchanged, against the house.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { promisify } from "node:util";

const run = promisify(execFile);
const cli = async (...args) => (await run("node_modules/.bin/freestyle", args, { timeout: 280_000 })).stdout;

assert.match(await cli("whoami"), /ac-[a-z0-9]{20}/);
assert.match(await cli("vm", "create", "--name", "cli"), /[a-z0-9]{20}/);
const list = JSON.parse(await cli("vm", "list", "--json"));
const { id } = (Array.isArray(list) ? list : list.vms)[0];
assert.match(await cli("vm", "exec", id, "echo from the command line"), /from the command line/);
await cli("domains", "map", "something.style.dev", "--vm-id", id, "--vm-port", "3000");
assert.match(await cli("domains", "mappings"), /something\.style\.dev/);
await cli("domains", "unmap", "something.style.dev");
await cli("vm", "delete", id);
await assert.rejects(cli("vm", "exec", id, "true"), /VM_NOT_FOUND/);
console.log("the command line: whoami, create, list, exec, map, mappings, unmap, delete");
