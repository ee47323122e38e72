// MQTT.js in a page of headless Chromium. Usage: node chromium.mjs FOLDER-OF-NODE-MODULES CHROMIUM; requests are lines of
// stdin, see remote_client.py. HOME is a folder whose certificate store the browser takes.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const [folder, executablePath] = process.argv.slice(2);
const { chromium } = createRequire(`${folder}/`)("playwright-core");
const peers = new URL("peers.js", import.meta.url);
const page_url = "http://interop.localhost/";

const tell = (told) => process.stdout.write(`${JSON.stringify(told)}\n`);
const browser = await chromium.launch({
    executablePath,
    // Containers give no namespaces to its sandbox, and little shared memory.
    args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
});
const page = await browser.newPage();
await page.route(page_url, (route) => route.fulfill({ contentType: "text/html", body: "<!doctype html><title>interop</title>" }));
await page.goto(page_url);
await page.addScriptTag({ path: `${folder}/node_modules/mqtt/dist/mqtt.min.js` });
await page.addScriptTag({ content: readFileSync(peers, "utf-8") });
await page.exposeFunction("interopEmit", tell);
await page.evaluate(() => {
    const { connect } = globalThis.mqtt;
    // The bundle keeps its Buffer to itself, and takes any array of octets.
    const interopBuffer = (octets) => octets;
    globalThis.interopRequest = globalThis.interopPeers({ connect, interopBuffer }, null, globalThis.interopEmit);
});

for await (const line of createInterface({ input: process.stdin })) {
    page.evaluate((asked) => globalThis.interopRequest(asked), JSON.parse(line)).then(tell, (error) => {
        tell({ id: JSON.parse(line).id, error: String(error) });
    });
}
await browser.close();
process.exit(0);
