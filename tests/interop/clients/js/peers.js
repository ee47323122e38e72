// Peers on MQTT.js, told what to do by requests; see remote_client.py. The same code runs in Node and in a page.

// What `request` answers goes back to the one who asked; `emit` tells what happens to a peer.
globalThis.interopPeers = function interopPeers(mqtt, readFile, emit) {
    const peers = new Map();
    const bytes = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const base64 = (octets) => {
        let text = "";
        for (const octet of octets) {
            text += String.fromCharCode(octet);
        }
        return btoa(text);
    };

    // The names of the steps on the left, those of MQTT.js on the right.
    function toProperties(given) {
        const made = {};
        if ("format" in given) made.payloadFormatIndicator = given.format === 1;
        if ("expiry" in given) made.messageExpiryInterval = given.expiry;
        if ("content_type" in given) made.contentType = given.content_type;
        if ("response_topic" in given) made.responseTopic = given.response_topic;
        if ("correlation" in given) made.correlationData = mqtt.interopBuffer(bytes(given.correlation));
        if ("user" in given) {
            made.userProperties = {};
            for (const [name, value] of given.user) {
                (made.userProperties[name] ??= []).push(value);
            }
        }
        return made;
    }

    function fromProperties(given = {}) {
        const made = {
            format: given.payloadFormatIndicator === undefined ? null : Number(given.payloadFormatIndicator),
            expiry: given.messageExpiryInterval ?? null,
            content_type: given.contentType ?? null,
            response_topic: given.responseTopic ?? null,
            correlation: given.correlationData === undefined ? null : base64(given.correlationData),
            user: null,
            identifiers: given.subscriptionIdentifier === undefined ? null : [given.subscriptionIdentifier].flat(),
        };
        if (given.userProperties !== undefined) {
            made.user = Object.entries(given.userProperties).flatMap(([name, values]) =>
                [values].flat().map((value) => [name, value]),
            );
        }
        return made;
    }

    function optionsOf(request) {
        const [first] = request.addresses;
        const protocol = { tcp: "mqtt", tls: "mqtts", ws: "ws", wss: "wss" }[request.transport];
        const version = { "3.1": 3, "3.1.1": 4, "5.0": 5 }[request.version];
        const options = {
            protocol,
            protocolId: version === 3 ? "MQIsdp" : "MQTT",
            protocolVersion: version,
            host: first.host,
            hostname: first.host,
            port: first.port,
            path: first.path,
            clientId: request.client_id,
            clean: request.session_s === 0,
            keepalive: request.keep_alive_s,
            // The filters are asked for again at every CONNACK, below.
            resubscribe: false,
            reconnectPeriod: 0,
        };
        if (request.addresses.length > 1) {
            options.servers = request.addresses.map(({ host, port }) => ({ host, port, protocol }));
            options.reconnectPeriod = request.retry_ms;
        }
        if (version === 5) {
            options.properties = { sessionExpiryInterval: request.session_s };
            if (request.receive_maximum) options.properties.receiveMaximum = request.receive_maximum;
            if (request.topic_aliases) options.properties.topicAliasMaximum = request.topic_aliases;
            options.autoAssignTopicAlias = request.topic_aliases > 0;
        }
        if (request.will) {
            options.will = { ...request.will, payload: mqtt.interopBuffer(bytes(request.will.payload)) };
        }
        // A page has no say in this: its browser has.
        if (readFile && (protocol === "mqtts" || protocol === "wss")) {
            options.ca = readFile(request.ca);
            options.cert = request.cert ? readFile(request.cert) : undefined;
            options.key = request.key ? readFile(request.key) : undefined;
        }
        return options;
    }

    async function subscribe(client, request) {
        if (request.filters.length === 0) {
            return;
        }
        const wanted = {};
        for (const filter of request.filters) {
            wanted[filter.topic] = {
                qos: filter.qos,
                nl: filter.no_local,
                rap: filter.retain_as_published,
                rh: filter.retain_handling,
            };
        }
        const identifier = request.filters[0].identifier;
        const properties = identifier ? { properties: { subscriptionIdentifier: identifier } } : undefined;
        const granted = await client.subscribeAsync(wanted, properties);
        const got = granted.map(({ topic, qos }) => `${topic} ${qos}`).join();
        const asked = request.filters.map(({ topic, qos }) => `${topic} ${qos}`).join();
        if (got !== asked) {
            throw new Error(`SUBACK says ${got}, not ${asked}`);
        }
    }

    function open(request) {
        const peer = request.peer;
        const tell = (event, more) => emit({ peer, event, ...more });
        const client = mqtt.connect(optionsOf(request));
        peers.set(peer, client);
        let error = "closed";
        client.on("connect", (connack) => {
            subscribe(client, request).then(
                () => tell("connected", { present: connack.sessionPresent }),
                (why) => tell("lost", { why: String(why) }),
            );
        });
        client.on("message", (topic, payload, { qos, retain, dup, properties }) => {
            tell("message", { topic, payload: base64(payload), qos, retain, dup, properties: fromProperties(properties) });
        });
        client.on("error", (why) => (error = String(why)));
        client.on("disconnect", ({ reasonCode }) => (error = `DISCONNECT of the broker, ${reasonCode}`));
        client.on("close", () => tell("lost", { why: error }));
    }

    const operations = {
        hello() {},
        open,
        async publish(request) {
            const client = peers.get(request.peer);
            const options = { qos: request.qos, retain: request.retain, properties: toProperties(request.properties) };
            await Promise.all(
                request.messages.map(({ topic, payload }) =>
                    client.publishAsync(topic, mqtt.interopBuffer(bytes(payload)), options),
                ),
            );
        },
        async unsubscribe(request) {
            await peers.get(request.peer).unsubscribeAsync(request.topic);
        },
        async close(request) {
            await peers.get(request.peer)?.endAsync();
            peers.delete(request.peer);
        },
        // Without waiting for anything.
        abandon(request) {
            peers.get(request.peer)?.end(true);
            peers.delete(request.peer);
        },
    };

    return async function request(asked) {
        try {
            await operations[asked.op](asked);
            return { id: asked.id };
        } catch (error) {
            return { id: asked.id, error: String(error?.stack ?? error) };
        }
    };
};
