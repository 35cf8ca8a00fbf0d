// A client in another language, written after docs/wire-format.md and nothing else.
//
//   node client.mjs add <url> <stream> <count>             adds plain entries
//   node client.mjs add-rows <url> <stream> <count>        adds one rows block
//   node client.mjs work <url> <stream> <group> <count>    reads plain entries as a group, acknowledges
//   node client.mjs read <url> <stream>                    reads plain entries and rows blocks
//   node client.mjs ledger <url> <stream> <events> <log>   adds events of a file, logs the outcomes
//   node client.mjs places <stream> <shards> <key>...      the shards' keys, and each key's shard
//
// Each prints one line of JSON.

import { appendFileSync, readFileSync } from "node:fs";
import zlib from "node:zlib";
import { decode, encode } from "@msgpack/msgpack";
import { decompress } from "fzstd";
import { createClient, RESP_TYPES } from "redis";

const TIME = 1_700_000_000_000;
const [command, ...args] = process.argv.slice(2);

async function connected(url, run) {
  const client = createClient({ url });
  client.on("error", (error) => {
    throw error;
  });
  await client.connect();
  try {
    return await run(client);
  } finally {
    client.destroy();
  }
}

async function add(url, stream, count) {
  return connected(url, async (client) => {
    const ids = [];
    for (let n = 0; n < Number(count); n++) {
      const fields = { key: `node-${n % 3}`, time: String(TIME + n), n: String(n), volts: "230.5" };
      ids.push(await client.xAdd(stream, "*", fields));
    }
    return ids;
  });
}

// Every 10th fails before it is sent.
async function ledger(url, stream, events, log) {
  return connected(url, async (client) => {
    const lines = readFileSync(events, "utf8").trim().split("\n");
    for (const [n, line] of lines.entries()) {
      const event = JSON.parse(line);
      const fields = Object.fromEntries(Object.entries(event).map(([k, v]) => [k, String(v)]));
      const outcome = n % 10 === 9 ? "failed" : "acknowledged";
      if (outcome === "acknowledged") await client.xAdd(stream, "*", fields);
      appendFileSync(log, JSON.stringify([outcome, event.ledger_number, 1]) + "\n");
    }
    return lines.length;
  });
}

async function addRows(url, stream, count) {
  const rows = [];
  for (let n = 0; n < Number(count); n++) {
    rows.push([`node-${n % 3}`, TIME + n, { n, volts: 230.5, state: "on", ok: true, gap: null }]);
  }
  const payload = Buffer.from(encode(rows));
  return connected(url, (client) =>
    client.xAdd(stream, "*", { c: "rows1", n: String(rows.length), d: payload }),
  );
}

async function work(url, stream, group, count) {
  return connected(url, async (client) => {
    await client.xGroupCreate(stream, group, "0", { MKSTREAM: true });
    const handled = [];
    while (handled.length < Number(count)) {
      const reply = await client.xReadGroup(group, "node", { key: stream, id: ">" }, { COUNT: 10 });
      const entries = reply?.[0]?.messages ?? [];
      if (!entries.length) break;
      for (const { id, message } of entries) handled.push({ id, ...message });
      await client.xAck(stream, group, entries.map(({ id }) => id));
    }
    return handled;
  });
}

// An entry whose fields are c, n and d is a block; every other one is a plain event.
function decodeEntry(id, flat) {
  const fields = {};
  for (let i = 0; i < flat.length; i += 2) fields[flat[i].toString()] = flat[i + 1];
  if (Object.keys(fields).sort().join() !== "c,d,n") {
    const text = Object.fromEntries(Object.entries(fields).map(([k, v]) => [k, v.toString()]));
    const { key = null, time = id.split("-")[0], ...rest } = text;
    return [{ id, key, time: Number(time), fields: rest }];
  }
  if (fields.c.toString() !== "rows1") return [{ id, unread: fields.c.toString() }];
  let payload = fields.d;
  const isZstd = payload.subarray(0, 4).equals(Buffer.from([0x28, 0xb5, 0x2f, 0xfd]));
  if (isZstd) payload = decompress(payload);
  // Integers have up to 64 bits, more than a number of JavaScript holds exactly.
  const rows = decode(payload, { useBigInt64: true });
  if (rows.length !== Number(fields.n)) throw new Error(`${fields.n} announced, ${rows.length} there`);
  return rows.map(([key, time, values], index) => {
    for (const [name, value] of Object.entries(values)) {
      if (value instanceof Uint8Array) values[name] = { hex: Buffer.from(value).toString("hex") };
    }
    return { id: `${id}/${index}`, isZstd, key, time: Number(time), fields: values };
  });
}

async function read(url, stream) {
  return connected(url, async (client) => {
    const asBytes = client.withTypeMapping({ [RESP_TYPES.BLOB_STRING]: Buffer });
    const entries = await asBytes.sendCommand(["XRANGE", stream, "-", "+"]);
    return entries.flatMap(([id, flat]) => decodeEntry(id.toString(), flat));
  });
}

// CRC16 (XMODEM) of the hash tag, as Redis Cluster has it.
function slot(tag) {
  let crc = 0;
  for (const byte of Buffer.from(tag)) {
    crc ^= byte << 8;
    for (let bit = 0; bit < 8; bit++) crc = crc & 0x8000 ? ((crc << 1) ^ 0x1021) & 0xffff : crc << 1;
  }
  return crc % 16384;
}

function places(stream, shards, ...keys) {
  const count = Number(shards);
  const shardKeys = [];
  for (let shard = 0; shard < count; shard++) {
    let salt = 0;
    while (Math.floor((slot(`${shard}-${salt}`) * count) / 16384) !== shard) salt++;
    shardKeys.push(count === 1 ? stream : `${stream}:{${shard}-${salt}}`);
  }
  return { shardKeys, homes: keys.map((key) => zlib.crc32(Buffer.from(key)) % count) };
}

const commands = { add, "add-rows": addRows, work, read, ledger, places };
const result = await commands[command](...args);
console.log(JSON.stringify(result, (_, value) => (typeof value === "bigint" ? String(value) : value)));
