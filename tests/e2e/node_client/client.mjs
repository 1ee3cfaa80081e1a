// A client of the gatepass broker, written from docs/protocol.md and from nothing else: it shows that the page is enough.
import { lstat, readlink, access } from 'node:fs/promises';
import net from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { decode, encode } from '@msgpack/msgpack';

const MAX_BODY = 65536;
const MAX_ID = 4294967295;
const UNMAPPED = 65534;

const PROTOCOL = new Set(['malformed', 'unsupported_version']);
const DENIED = new Set(['unknown_operation', 'invalid_request', 'denied', 'operation_not_allowed']);
const LATER = new Set(['rate_limited', 'unavailable', 'internal']);
const RESTARTING = new Set(['ENOENT', 'ECONNREFUSED', 'EAGAIN', 'ECONNRESET', 'EPIPE', 'ENDED']);

export class GatepassError extends Error {
  constructor(code, message, retryAfter = null) {
    super(message);
    this.code = code;
    this.retryAfter = retryAfter;
  }

  get kind() {
    if (PROTOCOL.has(this.code)) return 'protocol';
    if (DENIED.has(this.code)) return 'denied';
    if (LATER.has(this.code)) return 'later';
    return this.code.startsWith('token_') ? 'token' : 'unknown';
  }
}

// --- Find the socket

export async function defaultSocket(env = process.env) {
  if (env.GATEPASS_SOCKET) return env.GATEPASS_SOCKET;
  const own = `${env.XDG_RUNTIME_DIR || `/run/user/${process.getuid()}`}/gatepass/broker.sock`;
  return (await access(own).then(() => true, () => false)) ? own : '/run/gatepass/broker.sock';
}

// --- Check whom you talk to

const impostor = (why) => new GatepassError('impostor', why);
const names = (path) => path.split('/').filter((name) => name !== '' && name !== '.').reverse();

function vouches(path, status) {
  const othersWrite = (status.mode & 0o022) !== 0;
  if (othersWrite && (status.mode & 0o1000) === 0) throw impostor(`others can write to ${path}`);
  return !othersWrite;
}

export async function checkPath(path) {
  if (path.startsWith('@') || path.startsWith('\0')) throw impostor('an abstract socket');
  if (!path.startsWith('/') || path.includes('\0') || Buffer.byteLength(path) > 107) {
    throw new GatepassError('misconfigured', `not a usable path: ${path}`);
  }
  const trusted = new Set([0, process.geteuid()]);
  trusted.delete(UNMAPPED);
  const check = (at, status, vouched) => {
    if (trusted.has(status.uid)) return;
    if (!vouched || status.uid === UNMAPPED) throw impostor(`${at} belongs to user ${status.uid}`);
    trusted.add(status.uid);
  };
  const ahead = names(path);
  let here = '/';
  let status = await lstat(here);
  let vouched = false;
  let links = 0;
  check(here, status, false);
  while (ahead.length > 0) {
    vouched = vouches(here, status);
    const name = ahead.pop();
    const next = name === '..' ? here.replace(/\/[^/]*$/, '') || '/' : `${here === '/' ? '' : here}/${name}`;
    const found = await lstat(next);
    check(next, found, vouched);
    if (!found.isSymbolicLink()) {
      [here, status] = [next, found];
      continue;
    }
    if (++links > 40) throw impostor(`too many symbolic links in ${path}`);
    const target = await readlink(next);
    ahead.push(...names(target));
    if (target.startsWith('/')) [here, status] = ['/', await lstat('/')];
  }
  if (!status.isSocket()) throw impostor(`${path} is not a socket`);
  // Node tells nothing of SO_PEERCRED: hence the stricter rule for the socket's own directory.
  if (!vouched) throw impostor(`others can make entries beside ${path}`);
}

// --- Frames

const malformed = (why) => new GatepassError('malformed', why);

function encodeFrame(message) {
  const body = encode(message, { ignoreUndefined: true });
  if (body.length > MAX_BODY) throw malformed('the request is too long for a frame');
  const frame = Buffer.alloc(4 + body.length);
  frame.writeUInt32BE(body.length);
  frame.set(body, 4);
  return frame;
}

function onlyStrings(key) {
  if (typeof key !== 'string') throw malformed('a key is not a string');
  return key;
}

class FrameReader {
  #buffer = Buffer.alloc(0);

  get partial() {
    return this.#buffer.length > 0;
  }

  feed(data) {
    this.#buffer = Buffer.concat([this.#buffer, data]);
  }

  next() {
    if (this.#buffer.length < 4) return null;
    const length = this.#buffer.readUInt32BE();
    if (length > MAX_BODY) throw malformed(`a frame of ${length} bytes`);
    if (this.#buffer.length < 4 + length) return null;
    const body = this.#buffer.subarray(4, 4 + length);
    this.#buffer = this.#buffer.subarray(4 + length);
    let message;
    try {
      message = decode(body, {
        maxArrayLength: 4096, maxMapLength: 4096, maxBinLength: 0, maxExtLength: 0, mapKeyConverter: onlyStrings,
      });
    } catch (error) {
      throw malformed(`the frame is not one msgpack value: ${error.name}`);
    }
    if (message === null || typeof message !== 'object' || Array.isArray(message)) throw malformed('not a map');
    return message;
  }
}

// --- One connection

class Connection {
  #socket;
  #reader = new FrameReader();
  #fault = null;
  #wake = () => {};
  #id = 0;

  constructor(socket, chunk) {
    this.#socket = socket;
    this.chunk = chunk;
    socket.on('data', (data) => {
      this.#reader.feed(data);
      this.#wake();
    });
    socket.on('error', (error) => this.#end(error));
    socket.on('close', () => this.#end(Object.assign(new Error('the broker closed'), { code: 'ENDED' })));
  }

  static async open(path, chunk, seconds) {
    await checkPath(path);
    const socket = net.connect({ path });
    await new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        socket.destroy();
        reject(new GatepassError('timeout', 'no connection in time'));
      }, seconds * 1000);
      socket.once('connect', () => { clearTimeout(timer); resolve(); });
      socket.once('error', (error) => { clearTimeout(timer); reject(error); });
    });
    return new Connection(socket, chunk);
  }

  get ended() {
    return this.#fault !== null;
  }

  #end(error) {
    this.#fault ??= error;
    this.#wake();
  }

  nextId() {
    this.#id = (this.#id % MAX_ID) + 1;
    return this.#id;
  }

  // Not awaited before replies are read. A fault shows where the reply is awaited.
  async send(bytes) {
    for (let at = 0; at < bytes.length && !this.ended; at += this.chunk) {
      await new Promise((resolve) => this.#socket.write(bytes.subarray(at, at + this.chunk), resolve));
    }
  }

  // The next message. A fault has `cutOff` if part of a reply is there.
  async receive(seconds = Infinity) {
    const until = performance.now() + seconds * 1000;
    for (;;) {
      const message = this.#reader.next();
      if (message !== null) return message;
      if (this.#fault !== null) throw Object.assign(this.#fault, { cutOff: this.#reader.partial });
      const left = until - performance.now();
      if (left <= 0) throw new GatepassError('timeout', 'the broker did not answer in time');
      let timer;
      await new Promise((resolve) => {
        this.#wake = resolve;
        if (left !== Infinity) timer = setTimeout(resolve, left);
      });
      clearTimeout(timer);
    }
  }

  close() {
    this.#fault ??= Object.assign(new Error('closed'), { code: 'ENDED' });
    this.#socket.destroy();
    this.#wake();
  }
}

// --- Requests and replies

function errorOf(reply) {
  const error = reply.error;
  if (reply.ok !== false || typeof error?.code !== 'string' || typeof error?.message !== 'string') {
    return malformed('the reply says neither yes nor no');
  }
  return new GatepassError(error.code, error.message, Number.isInteger(error.retry_after) ? error.retry_after : null);
}

function resultOf(reply) {
  const { id, ok, ...result } = reply;
  return result;
}

// --- Repeating a request

class Patience {
  #delay = 0.02;
  #cutOff = false;

  constructor(seconds) {
    this.#until = performance.now() + seconds * 1000;
  }

  #until;

  get left() {
    return (this.#until - performance.now()) / 1000;
  }

  // Wait before the next attempt after `error`, or throw what the call ends with.
  async after(error) {
    const wanted = this.#wanted(error);
    if (wanted === null || wanted >= this.left) throw named(error);
    await sleep(wanted * 1000);
  }

  #wanted(error) {
    if (error instanceof GatepassError) {
      return error.code === 'unavailable' ? Math.max(this.#next(), error.retryAfter ?? 0) : null;
    }
    if (!RESTARTING.has(error.code)) return null;
    if (error.cutOff) {
      if (this.#cutOff) return null;
      this.#cutOff = true;
    }
    return this.#next();
  }

  #next() {
    const delay = this.#delay * (0.5 + Math.random() / 2);
    this.#delay = Math.min(this.#delay * 2, 0.5);
    return delay;
  }
}

function named(error) {
  if (error instanceof GatepassError) return error;
  if (error.code === 'EACCES') return new GatepassError('permission', error.message);
  return new GatepassError('unreachable', error.message);
}

export class Client {
  #connection = null;
  #turn = Promise.resolve();

  // `chunk`: bytes to write at a time.
  constructor({ socket = null, timeout = 5, chunk = Infinity } = {}) {
    Object.assign(this, { socket, timeout, chunk });
  }

  issue({ audience, scope, ttl } = {}) {
    return this.call('issue', { audience, scope, ttl });
  }

  whoami() {
    return this.call('whoami');
  }

  status() {
    return this.call('status');
  }

  async verify(token, audience) {
    return (await this.call('verify', { token, audience })).claims;
  }

  async call(op, parameters = {}) {
    const [result] = await this.pipeline([{ op, ...parameters }]);
    if (result instanceof GatepassError) throw result;
    return result;
  }

  // Send all requests at once; return for each its result, or its error, in their order.
  pipeline(requests) {
    const results = this.#turn.then(() => this.#serve(requests.map((request) => ({ request, result: null }))));
    this.#turn = results.catch(() => {});
    return results;
  }

  close() {
    this.#connection?.close();
    this.#connection = null;
  }

  async #serve(slots) {
    const patience = new Patience(this.timeout);
    for (;;) {
      const open = slots.filter((slot) => slot.result === null);
      if (open.length === 0) return slots.map((slot) => slot.result);
      try {
        await this.#attempt(open, patience);
      } catch (error) {
        this.close();
        await patience.after(error);
        continue;
      }
      const later = open.find((slot) => slot.result?.code === 'unavailable');
      if (later !== undefined) {
        const error = later.result;
        for (const slot of open) if (slot.result.code === 'unavailable') slot.result = null;
        await patience.after(error);
      }
    }
  }

  async #attempt(slots, patience) {
    if (this.#connection === null || this.#connection.ended) {
      this.#connection = await Connection.open(this.socket ?? (await defaultSocket()), this.chunk, patience.left);
    }
    const connection = this.#connection;
    const ids = slots.map(() => connection.nextId());
    const frames = slots.map(({ request }, index) => encodeFrame({ v: 1, id: ids[index], ...request }));
    void connection.send(Buffer.concat(frames));
    for (const [index, slot] of slots.entries()) {
      const reply = await connection.receive(patience.left);
      if (reply.id === 0) throw errorOf(reply);
      if (reply.id !== ids[index]) throw malformed('a reply to another request than the one that is due');
      slot.result = reply.ok === true ? resultOf(reply) : errorOf(reply);
      if (slot.result.kind === 'protocol') throw slot.result;
    }
  }
}

// --- follow: the key sets as they change, over restarts of the broker, without end. Close it with `return()`.

export async function* follow({ socket = null, firstReply = 5 } = {}) {
  let delay = 0.1;
  for (;;) {
    let connection = null;
    try {
      connection = await Connection.open(socket ?? (await defaultSocket()), Infinity, firstReply);
      await connection.send(encodeFrame({ v: 1, id: 1, op: 'follow' }));
      for (let seconds = firstReply; ; seconds = Infinity) {
        const reply = await connection.receive(seconds);
        if (reply.id !== 1 && reply.id !== 0) throw malformed('a reply to another request');
        if (reply.ok !== true) throw errorOf(reply);
        delay = 0.1;
        yield resultOf(reply);
      }
    } catch (error) {
      const repeat = error instanceof GatepassError
        ? error.code === 'unavailable' || error.code === 'timeout'
        : RESTARTING.has(error.code);
      if (!repeat) throw named(error);
    } finally {
      connection?.close();
    }
    await sleep(delay * 1000);
    delay = Math.min(delay * 2, 2);
  }
}
