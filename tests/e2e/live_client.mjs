// A client that stays connected: OpenClaw's own gateway client (its `plugin-sdk`), as `openclaw tui` uses it.
//
//     node live_client.mjs OPENCLAW_PACKAGE     options as the first line of stdin, then requests; events on stdout
//
// Every line is one JSON value. A request is {method, params}; the answers and all that happens to the connection come
// as {event, …}. The token is taken from the options, or from the file that OPENCLAW_TOKEN_FILE names, once: a client
// of OpenClaw's goes on with the secret that it began with.

import { generateKeyPairSync, createHash, sign } from "node:crypto";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const sdk = pathToFileURL(`${process.argv[2]}/dist/plugin-sdk/gateway-runtime.js`);
const { GatewayClient } = await import(sdk.href);

const say = (event, more = {}) => process.stdout.write(`${JSON.stringify({ event, ...more })}\n`);

function deviceOf(privateKeyPem, publicKeyPem, publicKey) {
  const raw = publicKey.export({ type: "spki", format: "der" }).subarray(-32);
  return { deviceId: createHash("sha256").update(raw).digest("hex"), privateKeyPem, publicKeyPem };
}

function newDevice() {
  const { privateKey, publicKey } = generateKeyPairSync("ed25519");
  return deviceOf(
    privateKey.export({ type: "pkcs8", format: "pem" }),
    publicKey.export({ type: "spki", format: "pem" }),
    publicKey,
  );
}

function connect({ device, ...options }) {
  const client = new GatewayClient({
    clientName: "openclaw-tui",
    mode: "ui",
    scopes: ["operator.admin", "operator.read", "operator.write"],
    minProtocol: 4,
    maxProtocol: 4,
    ...options,
    deviceIdentity: device ?? null,
    hostDeps: {
      loadDeviceAuthToken: () => null,
      storeDeviceAuthToken: () => {},
      clearDeviceAuthToken: () => {},
    },
    onHelloOk: (hello) => say("hello", { auth: hello.auth }),
    onClose: (code, reason) => say("close", { code, reason }),
    onConnectError: (error) => say("error", { message: error.message }),
    onReconnectPaused: (info) => say("paused", info),
  });
  client.start();
  return client;
}

let client;
for await (const line of createInterface({ input: process.stdin })) {
  const { method, params, ...options } = JSON.parse(line);
  if (client === undefined) {
    if (options.device === "new") {
      options.device = newDevice();
      say("device", { device: options.device });
    }
    client = connect(options);
  } else {
    client.request(method, params).then(
      (payload) => say("answer", { ok: true, payload }),
      (error) => say("answer", { ok: false, message: error.message }),
    );
  }
}
await client?.stopAndWait();
process.exit(0);
