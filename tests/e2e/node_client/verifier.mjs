// A verifier of gatepass tokens, written from docs/protocol.md and from nothing else.
import { createHash, createPublicKey, verify as verifySignature } from 'node:crypto';
import { GatepassError } from './client.mjs';

const MAX_SECONDS = 2n ** 53n;
const MAX_KERNEL_ID = 2n ** 64n - 1n;
const PRINTABLE = /^(?:[^\p{C}\p{Z}]| )+$/u;

const refuse = (code, why) => { throw new GatepassError(code, why); };
const malformed = (why) => refuse('token_malformed', why);

function bytesOf(text) {
  const bytes = Buffer.from(text, 'base64url');
  if (bytes.toString('base64url') !== text) malformed('not canonical base64url');
  return bytes;
}

// --- Keys: from the exact header of a key's tokens to the key.

export function keyTable(keys) {
  return new Map(keys.map((key) => {
    const { kty, crv, x, kid, use, alg, ...other } = key;
    const text = `{"crv":"Ed25519","kty":"OKP","x":"${x}"}`;
    const fits = kty === 'OKP' && crv === 'Ed25519' && use === 'sig' && alg === 'EdDSA'
      && Object.keys(other).length === 0 && typeof x === 'string' && bytesOf(x).length === 32
      && kid === createHash('sha256').update(text).digest('base64url');
    if (!fits) throw new Error('not a gatepass key');
    const header = Buffer.from(`{"alg":"EdDSA","kid":"${kid}","typ":"gatepass+jwt"}`).toString('base64url');
    return [header, createPublicKey({ key: { kty, crv, x }, format: 'jwk' })];
  }));
}

// --- Claims. JSON.parse hides duplicate names, `1.0` and the last digits of what is large: the text is looked at as well.

function parseClaims(bytes) {
  let text;
  let claims;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
    claims = JSON.parse(text, (name, value, context) =>
      typeof value !== 'number' ? value : /^-?\d+$/.test(context.source) ? BigInt(context.source) : undefined);
  } catch {
    malformed('the claims are not JSON');
  }
  if (claims === null || typeof claims !== 'object' || Array.isArray(claims)) malformed('the claims are no object');
  if (hasDuplicates(text)) malformed('a name occurs twice');
  return claims;
}

// `text` is valid JSON. A string before a colon is a name of the innermost object.
function hasDuplicates(text) {
  const open = [];
  const tokens = text.match(/"(?:[^"\\]|\\.)*"(?:\s*:)?|[{}[\]]/g) ?? [];
  for (const token of tokens) {
    if (token === '{' || token === '[') open.push(new Set());
    else if (token === '}' || token === ']') open.pop();
    else if (token.endsWith(':')) {
      const name = JSON.parse(token.replace(/\s*:$/, ''));
      if (open.at(-1).has(name)) return true;
      open.at(-1).add(name);
    }
  }
  return false;
}

function object(value, name) {
  if (value === null || typeof value !== 'object' || Array.isArray(value)) malformed(`'${name}' is no object`);
  return value;
}

function text(value, name) {
  if (typeof value !== 'string' || !PRINTABLE.test(value)) malformed(`'${name}' is no text`);
}

function integer(value, name, most = MAX_SECONDS) {
  if (typeof value !== 'bigint' || value < 0n || value > most) malformed(`'${name}' is no integer in range`);
}

function checkClaims(claims) {
  for (const name of ['iss', 'sub', 'aud', 'jti']) text(claims[name], name);
  for (const name of ['iat', 'nbf', 'exp']) integer(claims[name], name);
  if (claims.nbf !== claims.iat || claims.exp <= claims.iat) malformed('the times do not fit');
  if (typeof claims.scope !== 'string') malformed("'scope' is no string");
  let actors = 0;
  for (let actor = object(claims.act, 'act'); actor !== undefined; actor = actor.act) {
    if (++actors > 16) malformed('too many actors');
    text(object(actor, 'act').sub, 'act.sub');
  }
  const { uid, cgroup, process, ...conditions } = object(claims.cnf, 'cnf');
  integer(uid, 'cnf.uid', 2n ** 32n - 2n);
  if (cgroup !== undefined) integer(cgroup, 'cnf.cgroup', MAX_KERNEL_ID);
  if (process !== undefined) {
    const { pid, inode, ...others } = object(process, 'cnf.process');
    integer(pid, 'cnf.process.pid', 2n ** 31n - 1n);
    integer(inode, 'cnf.process.inode', MAX_KERNEL_ID);
    if (Object.keys(others).length > 0) malformed('a condition that is not known here');
  }
  if (Object.keys(conditions).length > 0) malformed('a condition that is not known here');
  if (claims.reconnect !== undefined) integer(claims.reconnect, 'reconnect');
  text(object(claims.boot, 'boot').id, 'boot.id');
  integer(claims.boot.exp, 'boot.exp');
}

// --- What was cut off before its time.

function unitOf(claims) {
  for (let actor = claims.act; actor !== undefined; actor = actor.act) {
    if (actor.sub.startsWith('unit:')) return actor.sub.slice('unit:'.length);
  }
  return null;
}

function isRevoked(claims, [by, value, issuedUntil]) {
  if (claims.iat > BigInt(issuedUntil)) return false;
  const unit = unitOf(claims);
  const chosen = {
    all: () => true,
    jti: () => claims.jti === value,
    uid: () => String(claims.cnf.uid) === value,
    identity: () => claims.sub === value,
    unit: () => unit === value || unit?.startsWith(`${value}/`) === true,
  }[by] ?? refuse('malformed', 'a revocation that is not known here');
  return chosen();
}

// `here` is {issuer, keys, audience, uid, time, boottime, bootId} and, where they are known, the ids of the connection's
// `cgroups`, itself and those above it, the living `processes`, each as `PID/INODE`, and what the broker has `locked` and
// its `revocations`. `keys` comes from `keyTable`.

export function verify(token, here) {
  const parts = token.split('.');
  if (token.length > 4096 || !/^[\x00-\x7f]*$/.test(token) || parts.length !== 3) malformed('not three parts');
  const [header, payload, signature] = parts;
  const key = here.keys.get(header) ?? refuse('token_unknown_key', 'no trusted key');
  const [signed, raw] = [bytesOf(signature), bytesOf(payload)];
  if (signed.length !== 64 || !verifySignature(null, Buffer.from(`${header}.${payload}`), key, signed)) {
    refuse('token_bad_signature', 'it was altered');
  }
  const claims = parseClaims(raw);
  checkClaims(claims);
  const { boot, cnf } = claims;
  if (claims.iss !== here.issuer) refuse('token_wrong_issuer', 'another broker');
  if (claims.aud !== here.audience) refuse('token_wrong_audience', 'another audience');
  if (boot.id !== here.bootId) refuse('token_wrong_boot', 'another boot');
  if (here.time >= claims.exp || here.boottime >= boot.exp) refuse('token_expired', 'it has ended');
  if (here.boottime < boot.exp - (claims.exp - claims.iat) - 5n) refuse('token_not_yet_valid', 'too early');
  if (here.uid === null || cnf.uid !== BigInt(here.uid)) refuse('token_wrong_uid', 'another user');
  const { cgroups = [], processes = [], locked = false, revocations = [] } = here;
  if (cnf.cgroup !== undefined && !cgroups.includes(String(cnf.cgroup))) refuse('token_wrong_unit', 'another unit');
  if (cnf.process !== undefined && !processes.includes(`${cnf.process.pid}/${cnf.process.inode}`)) {
    refuse('token_process_ended', 'its process has ended');
  }
  if (locked) refuse('locked', 'nothing counts');
  if (revocations.some((revocation) => isRevoked(claims, revocation))) refuse('token_revoked', 'it was revoked');
  return claims;
}
