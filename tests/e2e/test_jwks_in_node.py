"""A token verifies with somebody else's code, given only the published key set: the `jose` package in Node."""

from __future__ import annotations

import json
import subprocess

from e2e.openclaw_config import USER
from e2e.openclaw_install import OpenClawInstall
from e2e.stack import Stack

VERIFY = """
import { createLocalJWKSet, jwtVerify } from 'jose';
import { readFileSync } from 'node:fs';
const [jwks, audience] = process.argv.slice(2);
const keys = createLocalJWKSet(JSON.parse(readFileSync(jwks, 'utf8')));
const token = readFileSync(0, 'utf8').trim();
try {
  const { payload } = await jwtVerify(token, keys, { audience, typ: 'gatepass+jwt', algorithms: ['EdDSA'] });
  console.log(JSON.stringify(payload));
} catch (error) {
  console.log(JSON.stringify({ refused: error.code }));
}
"""


def _verify(stack: Stack, install: OpenClawInstall, token: str, audience: str) -> dict[str, object]:
    script = stack.directory / "verify.mjs"
    script.write_text(VERIFY)
    modules = script.with_name("node_modules")
    if not modules.exists():
        modules.symlink_to(install.jose.parent)
    done = subprocess.run(
        [install.node, script, stack.jwks, audience],
        input=token,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    claims: dict[str, object] = json.loads(done.stdout)
    return claims


def test_jose_accepts_our_token_and_reads_the_claims(stack: Stack, openclaw_install: OpenClawInstall) -> None:
    claims = _verify(stack, openclaw_install, stack.token(None, "--scope", "operator.read"), "openclaw")
    assert claims["sub"] == USER
    assert claims["iss"] == "gatepass:e2e"
    assert claims["scope"] == "operator.read"
    assert claims["cnf"] == {"uid": stack.owner.uid}


def test_jose_refuses_another_audience_and_an_altered_token(stack: Stack, openclaw_install: OpenClawInstall) -> None:
    token = stack.token()
    assert _verify(stack, openclaw_install, token, "elsewhere") == {"refused": "ERR_JWT_CLAIM_VALIDATION_FAILED"}
    header, payload, signature = token.split(".")
    altered = f"{header}.{payload}.{'A' * len(signature)}"
    assert _verify(stack, openclaw_install, altered, "openclaw") == {"refused": "ERR_JWS_SIGNATURE_VERIFICATION_FAILED"}
