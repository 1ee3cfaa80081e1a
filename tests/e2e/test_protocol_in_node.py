"""docs/protocol.md is enough to write a client and a verifier from: those in `node_client`, against a real broker."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from e2e.openclaw_install import OpenClawInstall
from gatepass.claims import Process
from gatepass.clock import Moment, now
from gatepass.errors import ErrorCode, TokenError
from gatepass.revocations import Cut, Revocation, Standing, standing_to_wire
from gatepass.tokens import Presenter, b64decode, b64encode, header, jwk, thumbprint
from gatepass_broker.keys import OVERLAP
from gatepass_gateway.verifier import Verifier, key_set
from support.broker import ISSUER, USER, BrokerProcess, in_thread, running_broker

SCRIPTS = Path(__file__).with_name("node_client")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "protocol.md"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
CGROUP, PROCESS = 2**64 - 1, Process(4711, 2**40)
REVOKED_UNTIL = 1_900_000_000
STANDING = Standing(
    revocations=(
        Revocation(Cut.JTI, "revoked", REVOKED_UNTIL),
        Revocation(Cut.UNIT, "bad.service", REVOKED_UNTIL),
        Revocation(Cut.IDENTITY, "mallory@example.com", REVOKED_UNTIL),
        Revocation(Cut.UID, "1001", REVOKED_UNTIL),
    )
)
MOMENT = Moment(1_900_000_000, 5_000, "0123456789abcdef0123456789abcdef")


class NodeClient:
    """The client in Node, driven by one JSON command per line. Use it as a context manager."""

    def __init__(self, install: OpenClawInstall, directory: Path, environment: Mapping[str, str]) -> None:
        scripts = directory / "node_client"
        if not scripts.exists():
            shutil.copytree(SCRIPTS, scripts)
            (scripts / "node_modules").symlink_to(install.msgpack)
        self._process = subprocess.Popen(
            [install.node, scripts / "drive.mjs"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": os.defpath, **environment},
            text=True,
        )

    def send(self, command: str, **parameters: Any) -> None:
        """Let it begin with a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"command": command, **parameters}) + "\n")
        self._process.stdin.flush()

    def receive(self) -> Any:
        """Return what the command gave: a value, or an error as `{code, kind, message}` in `NodeError`."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the client ended ({self._process.wait(10)})"
        return _value(json.loads(line))

    def do(self, command: str, **parameters: Any) -> Any:
        """Carry out a command to its end."""
        self.send(command, **parameters)
        return self.receive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()


class NodeError(Exception):
    """An error of the client in Node."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(error["message"])
        self.code, self.kind = error["code"], error["kind"]


def _value(answer: Mapping[str, Any]) -> Any:
    if "error" in answer:
        raise NodeError(answer["error"])
    return answer["value"]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    directory = tmp_path_factory.mktemp("broker")
    sockets = [
        {"path": str(directory / "broker.sock"), "mode": "0600", "allow": ["request", "follow"]},
        {"path": str(directory / "asking.sock"), "mode": "0600", "allow": ["request"]},
    ]
    with BrokerProcess(directory, sockets=sockets) as running:
        yield running


@pytest.fixture(scope="module")
def node_at_broker(broker: BrokerProcess, openclaw_install: OpenClawInstall) -> Iterator[NodeClient]:
    with NodeClient(openclaw_install, broker.directory, {"GATEPASS_SOCKET": str(broker.socket)}) as client:
        yield client


@pytest.fixture
def node(node_at_broker: NodeClient) -> NodeClient:
    node_at_broker.do("open")
    return node_at_broker


def test_issue_whoami_status_and_verify(node: NodeClient) -> None:
    issued = node.do("issue", audience="openclaw", scope="operator.read", ttl=60)
    assert {**issued, "token": ""} == {
        "token": "",
        "expires_in": 60,
        "subject": USER,
        "audience": "openclaw",
        "scope": "operator.read",
    }

    seen = node.do("call", op="whoami")
    assert (seen["caller"]["uid"], seen["grant"]["identity"], seen["issuer"]) == (os.geteuid(), USER, ISSUER)
    assert node.do("call", op="status")["state"] == "running"

    claims = node.do("verify", token=issued["token"])
    assert (claims["sub"], claims["scope"], claims["cnf"]) == (USER, "operator.read", {"uid": os.geteuid()})


def test_a_tampered_token_does_not_verify(node: NodeClient) -> None:
    protected, payload, _ = node.do("issue")["token"].split(".")
    with pytest.raises(NodeError) as refused:
        node.do("verify", token=f"{protected}.{payload}.{'A' * 86}")
    assert (refused.value.code, refused.value.kind) == ("token_bad_signature", "token")


@pytest.mark.parametrize(
    ("op", "parameters", "code"),
    [
        ("issue", {"scope": "operator.admin"}, "denied"),
        ("issue", {"colour": "blue"}, "invalid_request"),
        ("issue", {"audience": None}, "invalid_request"),
        ("issue", {"audience": "tab\t"}, "invalid_request"),
        ("issue", {"ttl": 0}, "invalid_request"),
        ("verify", {}, "invalid_request"),
        ("conquer", {}, "unknown_operation"),
    ],
)
def test_what_is_refused_says_why_and_the_connection_goes_on(
    node: NodeClient, op: str, parameters: dict[str, Any], code: str
) -> None:
    with pytest.raises(NodeError) as refused:
        node.do("call", op=op, parameters=parameters)
    assert (refused.value.code, refused.value.kind) == (code, "denied")
    assert node.do("call", op="whoami")["issuer"] == ISSUER


def test_a_socket_serves_its_own_operations_only(node: NodeClient, broker: BrokerProcess) -> None:
    asking = str(broker.directory / "asking.sock")
    node.do("open", socket=asking)
    assert node.do("issue")["subject"] == USER
    with pytest.raises(NodeError) as refused:
        node.do("call", op="follow")
    assert refused.value.code == "operation_not_allowed"


def test_another_version_and_a_float_end_the_connection(node: NodeClient) -> None:
    for wrong, code in (({"v": 2}, "unsupported_version"), ({"ttl": 1.5}, "malformed"), ({"id": 0}, "malformed")):
        with pytest.raises(NodeError) as refused:
            node.do("call", op="issue", parameters=wrong)
        assert (refused.value.code, refused.value.kind) == (code, "protocol")
    assert node.do("issue")["subject"] == USER


def test_twenty_pipelined_requests_are_answered_in_order(node: NodeClient) -> None:
    requests: list[dict[str, Any]] = [{"op": "issue", "ttl": number} for number in range(1, 20)]
    requests.insert(7, {"op": "issue", "scope": "beyond"})
    answers = node.do("pipeline", requests=requests)
    assert answers.pop(7)["error"]["code"] == "denied"
    assert [answer["value"]["expires_in"] for answer in answers] == list(range(1, 20))


def test_frames_may_come_byte_by_byte(node: NodeClient) -> None:
    node.do("open", chunk=1)
    requests = [{"op": "issue", "ttl": 7}, {"op": "whoami"}]
    first, second = node.do("pipeline", requests=requests)
    assert (first["value"]["expires_in"], second["value"]["issuer"]) == (7, ISSUER)


def test_the_socket_is_found_below_xdg_runtime_dir(
    broker: BrokerProcess, openclaw_install: OpenClawInstall, tmp_path: Path
) -> None:
    (tmp_path / "gatepass").symlink_to(broker.directory)
    environment = {"GATEPASS_SOCKET": "", "XDG_RUNTIME_DIR": str(tmp_path)}
    with NodeClient(openclaw_install, tmp_path, environment) as client:
        assert client.do("issue")["subject"] == USER


def test_a_path_that_others_could_have_made_is_not_used(
    node: NodeClient, broker: BrokerProcess, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "broker.sock").symlink_to(broker.socket)
    node.do("check", path=str(shared / "broker.sock"))
    shared.chmod(0o777)
    for path in (str(shared / "broker.sock"), "@gatepass", str(broker.config)):
        with pytest.raises(NodeError) as refused:
            node.do("check", path=path)
        assert refused.value.code == "impostor"
    with pytest.raises(NodeError) as refused:
        node.do("check", path="broker.sock")
    assert refused.value.code == "misconfigured"


def test_a_restart_is_not_noticed(node: NodeClient, broker: BrokerProcess) -> None:
    token = node.do("issue")["token"]
    for end in (broker.stop, broker.kill):
        end()
        broker.start()  # the connection that the client kept is dead
        assert node.do("verify", token=token)["sub"] == USER
        end()
        node.send("pipeline", requests=[{"op": "issue", "ttl": number} for number in range(1, 6)])
        time.sleep(0.3)  # the client meets a broker that is down
        broker.start()
        assert [answer["value"]["expires_in"] for answer in node.receive()] == [1, 2, 3, 4, 5]


def test_a_broker_that_stays_away_is_unreachable(node: NodeClient, broker: BrokerProcess) -> None:
    node.do("open", socket=str(broker.directory / "nothing.sock"), timeout=0.3)
    with pytest.raises(NodeError) as refused:
        node.do("issue")
    assert refused.value.code == "unreachable"


def test_keys_are_followed_over_a_restart_and_verify_tokens(node: NodeClient, broker: BrokerProcess) -> None:
    token = node.do("issue")["token"]
    node.do("follow")
    first = node.do("next")
    broker.stop()
    broker.start()
    second = node.do("next")

    assert (first["issuer"], second["issuer"]) == (ISSUER, ISSUER)
    assert second["seq"] > first["seq"]
    old, new = ({key["kid"] for key in keys["keys"]} for keys in (first, second))
    assert old < new

    moment = now()
    here = {
        "audience": "openclaw",
        "uid": os.geteuid(),
        "time": moment.time,
        "boottime": moment.boottime,
        "bootId": moment.boot_id,
    }
    for shown in (token, node.do("issue")["token"]):
        assert node.do("judge", token=shown, issuer=second["issuer"], keys=second["keys"], **here)["sub"] == USER


async def test_a_change_of_keys_is_told_on_the_same_connection(
    openclaw_install: OpenClawInstall, tmp_path: Path
) -> None:
    async with running_broker(tmp_path) as broker:
        with NodeClient(openclaw_install, tmp_path, {"GATEPASS_SOCKET": str(broker.socket)}) as client:
            await in_thread(lambda: client.do("follow"))
            first = await in_thread(lambda: client.do("next"))
            broker.clock.pass_time(86_400 - OVERLAP)
            broker.server.broker.turn_keys()
            second = await in_thread(lambda: client.do("next"))

            assert len(broker.server.house.registry) == 1
            assert second["seq"] == first["seq"] + 1
            assert second["keys"][:-1] == first["keys"]


def page_token() -> str:
    """Return the token that the page gives to test with."""
    found = re.search(r"^eyJ\S+\.\S+\.\S+$", PAGE.read_text(), re.MULTILINE)
    assert found is not None
    return found.group()


def signed(payload: str) -> str:
    """Return a token with any payload."""
    text = f"{header(thumbprint(PUBLIC))}.{b64encode(payload.encode())}"
    return f"{text}.{b64encode(KEY.sign(text.encode()))}"


def _tokens() -> dict[str, str]:
    token = page_token()
    protected, payload, signature = token.split(".")
    text = b64decode(payload).decode()
    claims = json.loads(text)
    no_type = b64encode(json.dumps({"alg": "EdDSA", "kid": thumbprint(PUBLIC)}, separators=(",", ":")).encode())
    changes: dict[str, dict[str, Any]] = {
        "an unknown claim": {"x": 1.5},
        "an unknown condition": {"cnf": {"uid": 1000, "gid": 7}},
        "its cgroup": {"cnf": {"uid": 1000, "cgroup": CGROUP}},
        "another cgroup": {"cnf": {"uid": 1000, "cgroup": CGROUP - 1}},
        "no cgroup's id": {"cnf": {"uid": 1000, "cgroup": 2**64}},
        "a text for a cgroup": {"cnf": {"uid": 1000, "cgroup": str(CGROUP)}},
        "its process": {"cnf": {"uid": 1000, "process": PROCESS._asdict()}},
        "the process after it": {"cnf": {"uid": 1000, "process": PROCESS._replace(inode=9)._asdict()}},
        "a process without an inode": {"cnf": {"uid": 1000, "process": {"pid": PROCESS.pid}}},
        "a process and more": {"cnf": {"uid": 1000, "process": {**PROCESS._asdict(), "comm": "node"}}},
        "a process of another's": {"cnf": {"uid": 1001, "process": PROCESS._asdict()}},
        "cgroup and process": {"cnf": {"uid": 1000, "cgroup": CGROUP, "process": PROCESS._asdict()}},
        "a time to reconnect": {"reconnect": 3_600},
        "no time to reconnect": {"reconnect": -1},
        "revoked by its id": {"jti": "revoked"},
        "revoked by its unit": {"act": {"sub": "unit:bad.service", "act": {"sub": "uid:1000"}}},
        "revoked by the unit around its own": {"act": {"sub": "unit:bad.service/x.scope", "act": {"sub": "uid:1000"}}},
        "not revoked, of a unit whose name begins alike": {"act": {"sub": "unit:bad.service2"}},
        "revoked by its subject": {"sub": "mallory@example.com"},
        "issued after the revocation": {
            "sub": "mallory@example.com",
            "iat": REVOKED_UNTIL + 1,
            "nbf": REVOKED_UNTIL + 1,
        },
        "a number that a double cannot hold": {"exp": 2**53 + 1},
        "no condition": {"cnf": None},
        "another uid": {"cnf": {"uid": 1001}},
        "a uid that is none": {"cnf": {"uid": 2**32 - 1}},
        "a float": {"exp": 1_900_000_300.0},
        "a boolean": {"iat": True, "nbf": True},
        "nbf": {"nbf": 1_900_000_001},
        "a list of audiences": {"aud": ["openclaw"]},
        "another audience": {"aud": "elsewhere"},
        "another issuer": {"iss": "gatepass:other"},
        "an empty subject": {"sub": ""},
        "a zero-width space": {"sub": "derek\u200b"},
        "a space": {"sub": "derek and others"},
        "another boot": {"boot": {"id": "f" * 32, "exp": 5_300}},
        "over by the boot clock": {"boot": {"id": MOMENT.boot_id, "exp": 5_000}},
        "not begun": {"boot": {"id": MOMENT.boot_id, "exp": 5_306}},
        "just begun": {"boot": {"id": MOMENT.boot_id, "exp": 5_305}},
        "over by the wall clock": {"iat": 1_899_999_700, "nbf": 1_899_999_700, "exp": 1_900_000_000},
        "no scope": {"scope": ""},
        "an actor before": {"act": {"sub": "uid:1000", "act": {"sub": "uid:0"}, "x": 1}},
    }
    return {
        "the page's": token,
        "too long": f"{token}{'A' * 4_096}",
        "two parts": f"{protected}.{payload}",
        "another header": f"{no_type}.{payload}.{signature}",
        "padding": f"{protected}.{payload}.{signature}==",
        "not canonical": f"{protected}.{payload}.{signature[:-1]}{chr(ord(signature[-1]) + 1)}",
        "short signature": f"{protected}.{payload}.{signature[:-2]}",
        "altered": f"{protected}.{payload[:-4]}AAAA.{signature}",
        "a name twice": signed(text.replace('"aud"', '"sub":"mallory","aud"')),
        "a name twice, escaped": signed(text.replace('"uid"', '"u\\u0069d":1,"uid"')),
        "an exponent": signed(text.replace("5300", "53e2")),
        "NaN": signed(text.replace("5300", "NaN")),
        "no object": signed("[]"),
        **{name: signed(json.dumps({**claims, **change})) for name, change in changes.items()},
    }


def expected(token: str) -> str:
    """Return the code with which our own verifier refuses the token, or "good"."""
    presenter = Presenter(1000, lambda cgroup: cgroup == CGROUP, lambda process: process == PROCESS)
    try:
        Verifier("openclaw", key_set("gatepass:host", [jwk(PUBLIC)]), STANDING).verify(token, presenter, MOMENT)
    except TokenError as error:
        return error.code.value
    return "good"


def judged(node: NodeClient, token: str, **here: Any) -> str:
    """Return the code with which the verifier in Node refuses the token, or "good"."""
    try:
        node.do(
            "judge",
            token=token,
            keys=[jwk(PUBLIC)],
            issuer="gatepass:host",
            audience="openclaw",
            uid=1000,
            time=MOMENT.time,
            boottime=MOMENT.boottime,
            bootId=MOMENT.boot_id,
            **here,
        )
    except NodeError as error:
        return str(error.code)
    return "good"


def test_a_verifier_from_the_page_agrees_with_ours(node: NodeClient) -> None:
    here = {"cgroups": [str(CGROUP)], "processes": [f"{PROCESS.pid}/{PROCESS.inode}"], **standing_to_wire(STANDING)}
    codes = set()
    for name, token in _tokens().items():
        code = judged(node, token, **here)
        assert code == expected(token), name
        codes.add(code)
    assert codes == {"good", *(code for code in ErrorCode if code.startswith("token_"))}


def test_a_verifier_from_the_page_refuses_everything_under_lock_and_what_it_cannot_check(node: NodeClient) -> None:
    assert judged(node, page_token()) == "good"
    assert judged(node, page_token(), locked=True) == "locked"
    assert judged(node, _tokens()["its cgroup"]) == "token_wrong_unit"
    assert judged(node, _tokens()["its process"]) == "token_process_ended"
    assert judged(node, page_token(), revocations=[["a later kind", "", 2_000_000_000]]) == "malformed"
