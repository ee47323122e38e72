// MQTT.js through three nodes. Usage: node mqttjs.mjs FOLDER-OF-NODE-MODULES VERSION(4|5) PORT PORT PORT
// Ends with 0, or with 1 and what was wrong.

import assert from "node:assert/strict";
import { once } from "node:events";
import { createRequire } from "node:module";

const [folder, versionText, ...portTexts] = process.argv.slice(2);
const mqtt = createRequire(`${folder}/`)("mqtt");
const protocolVersion = Number(versionText);
const ports = portTexts.map(Number);
const run = Math.random().toString(16).slice(2, 10);
const count = 20;

setTimeout(() => {
    console.error("not within 30 s");
    process.exit(1);
}, 30_000).unref();

// A client of the node, whose messages are kept in order.
async function connect(node, options = {}) {
    const client = mqtt.connect({ host: "127.0.0.1", port: ports[node], protocolVersion, reconnectPeriod: 0, ...options });
    const inbox = [];
    let changed = () => {};
    client.on("message", (topic, payload, packet) => {
        inbox.push({ topic, text: payload.toString(), qos: packet.qos, retain: packet.retain });
        changed();
    });
    const [connack] = await once(client, "connect");
    const messages = async (wanted) => {
        while (inbox.length < wanted) {
            await new Promise((resolve) => (changed = resolve));
        }
        return inbox;
    };
    return { client, messages, sessionPresent: connack.sessionPresent };
}

async function everyQosAndWildcard() {
    const [subscriber, publisher] = [await connect(2), await connect(0)];
    for (const qos of [0, 1, 2]) {
        const [granted] = await subscriber.client.subscribeAsync(`js/${run}/${qos}/+/#`, { qos });
        assert.equal(granted.qos, qos);
        const texts = Array.from({ length: count }, (_, number) => `${qos} ${number}`);
        await Promise.all(texts.map((text) => publisher.client.publishAsync(`js/${run}/${qos}/a/b`, text, { qos })));
        const got = (await subscriber.messages((qos + 1) * count)).slice(qos * count);
        assert.deepEqual(got.map((message) => message.text), texts);
        assert(got.every((message) => message.qos === qos && !message.retain));
    }
    await Promise.all([subscriber.client.endAsync(), publisher.client.endAsync()]);
}

async function retained() {
    const publisher = await connect(1);
    await publisher.client.publishAsync(`js/${run}/kept`, "kept", { qos: 1, retain: true });
    for (const node of [0, 1, 2]) {
        const late = await connect(node);
        await late.client.subscribeAsync(`js/${run}/kept`, { qos: 1 });
        const [message] = await late.messages(1);
        assert.deepEqual([message.text, message.retain], ["kept", true]);
        await late.client.endAsync();
    }
    await publisher.client.publishAsync(`js/${run}/kept`, "", { qos: 1, retain: true });
    await publisher.client.endAsync();
}

async function will() {
    const watcher = await connect(2);
    await watcher.client.subscribeAsync(`js/${run}/will`, { qos: 1 });
    const lost = await connect(0, { will: { topic: `js/${run}/will`, payload: Buffer.from("gone"), qos: 1, retain: false } });
    lost.client.stream.destroy();
    assert.equal((await watcher.messages(1))[0].text, "gone");
    await watcher.client.endAsync();
}

async function sessionResume() {
    const keep = { clientId: `js-${run}`, clean: false };
    if (protocolVersion === 5) {
        keep.properties = { sessionExpiryInterval: 300 };
    }
    const first = await connect(1, keep);
    assert(!first.sessionPresent);
    await first.client.subscribeAsync(`js/${run}/session`, { qos: 1 });
    await first.client.endAsync();
    const publisher = await connect(0);
    await publisher.client.publishAsync(`js/${run}/session`, "meanwhile", { qos: 1 });
    await publisher.client.endAsync();
    const again = await connect(1, keep);
    assert(again.sessionPresent);
    assert.equal((await again.messages(1))[0].text, "meanwhile");
    await again.client.endAsync();
}

for (const step of [everyQosAndWildcard, retained, will, sessionResume]) {
    try {
        await step();
    } catch (error) {
        console.error(`${step.name}: ${error.stack ?? error}`);
        process.exit(1);
    }
}
process.exit(0);
