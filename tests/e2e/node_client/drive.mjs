// Lets a test use the client: one JSON command per line on stdin, one JSON answer per line on stdout.
import { createInterface } from 'node:readline';
import { Client, checkPath, follow } from './client.mjs';
import { keyTable, verify } from './verifier.mjs';

let client = new Client();
let stream = null;

const plain = (value) =>
  value instanceof Error ? { error: { code: value.code, kind: value.kind ?? null, message: value.message } } : { value };

const commands = {
  open: ({ chunk, ...options }) => { client.close(); client = new Client({ ...options, chunk: chunk ?? Infinity }); },
  call: ({ op, parameters }) => client.call(op, parameters),
  issue: (parameters) => client.issue(parameters),
  verify: ({ token, audience }) => client.verify(token, audience),
  pipeline: async ({ requests }) => (await client.pipeline(requests)).map(plain),
  check: ({ path }) => checkPath(path),
  follow: async ({ socket }) => { await stream?.return(); stream = follow({ socket }); },
  next: async () => (await stream.next()).value,
  judge: ({ token, keys, ...here }) => verify(token, { ...here, keys: keyTable(keys) }),
};

for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...parameters } = JSON.parse(line);
  let answer;
  try {
    answer = plain((await commands[command](parameters)) ?? null);
  } catch (error) {
    answer = plain(error);
  }
  process.stdout.write(`${JSON.stringify(answer, (_, value) => (typeof value === 'bigint' ? Number(value) : value))}\n`);
}
process.exit(0);
