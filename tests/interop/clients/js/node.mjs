// MQTT.js in Node. Usage: node node.mjs FOLDER-OF-NODE-MODULES; requests are lines of stdin, see remote_client.py.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

import "./peers.js";

const [folder] = process.argv.slice(2);
const mqtt = createRequire(`${folder}/`)("mqtt");
const tell = (told) => process.stdout.write(`${JSON.stringify(told)}\n`);
const request = globalThis.interopPeers({ connect: mqtt.connect, interopBuffer: Buffer.from }, readFileSync, tell);

for await (const line of createInterface({ input: process.stdin })) {
    request(JSON.parse(line)).then(tell);
}
process.exit(0);
