// MQTT.js in a page of headless Chromium. Usage: node chromium.mjs FOLDER-OF-NODE-MODULES CHROMIUM; requests are lines of
// stdin, see remote_client.py. HOME is a folder that chromium.py has prepared.

import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const [folder, executablePath] = process.argv.slice(2);
const { chromium } = createRequire(`${folder}/`)("playwright-core");
const peers = new URL("peers.js", import.meta.url);

const tell = (told) => process.stdout.write(`${JSON.stringify(told)}\n`);
const browser = await chromium.launch({
    executablePath,
    // Containers give no namespaces to its sandbox, and little shared memory.
    args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
});
// A page from elsewhere would not be let to this machine's ports without a dialogue.
const server = createServer((_, answer) => {
    answer.writeHead(200, { "content-type": "text/html" }).end("<!doctype html><title>interop</title>");
});
await once(server.listen(0, "127.0.0.1"), "listening");
const context = await browser.newContext();
const page = await context.newPage();
page.on("console", (line) => console.error(`chromium: ${line.text()}`));
await page.goto(`http://127.0.0.1:${server.address().port}/`);
await page.addScriptTag({ path: `${folder}/node_modules/mqtt/dist/mqtt.min.js` });
await page.addScriptTag({ content: readFileSync(peers, "utf-8") });
await page.exposeFunction("interopEmit", tell);
await page.evaluate(() => {
    const { connect } = globalThis.mqtt;
    // The bundle keeps its Buffer to itself, and takes any array of octets.
    const interopBuffer = (octets) => octets;
    globalThis.interopRequest = globalThis.interopPeers({ connect, interopBuffer }, null, globalThis.interopEmit);
});

// A certificate is chosen when a document is fetched, never for a WebSocket: so each address is visited first, as by a user
// who opens the page of his broker. What it answers does not matter.
const visited = new Set();
async function visit({ op, transport, addresses }) {
    if (op !== "open" || transport !== "wss") {
        return;
    }
    for (const { host, port } of addresses.filter(({ port }) => !visited.has(port))) {
        visited.add(port);
        const tab = await context.newPage();
        await tab.goto(`https://${host}:${port}/`).catch((error) => console.error(`chromium: ${error.message.split("\n")[0]}`));
        await tab.close();
    }
}

async function perform(asked) {
    try {
        await visit(asked);
        tell(await page.evaluate((request) => globalThis.interopRequest(request), asked));
    } catch (error) {
        tell({ id: asked.id, error: String(error) });
    }
}

for await (const line of createInterface({ input: process.stdin })) {
    perform(JSON.parse(line));
}
await browser.close();
process.exit(0);
