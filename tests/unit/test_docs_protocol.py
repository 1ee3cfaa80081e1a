"""docs/protocol.md says what the code does: its examples, tables and numbers are taken from the page and compared."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_type_hints

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import fields

from gatepass import client, frames, messages, openclaw, patience, server_identity, tokens
from gatepass.claims import MAX_ACTORS, MAX_SECONDS, Claims, Confirmation, Process, claims_to_json, decode_payload
from gatepass.cli import openclaw_secret
from gatepass.clock import Moment
from gatepass.daemon.ed25519 import signature_check
from gatepass.errors import (
    DeniedError,
    ErrorCode,
    GatepassError,
    ProtocolError,
    TokenError,
    TryLaterError,
    error_from_wire,
)
from gatepass.frames import Message, decode_body, encode_frame
from gatepass.messages import OPERATIONS, InvalidRequestError, ReportRequest, issued_token, parse_reply, parse_request
from gatepass.paths import SOCKET_VARIABLE, SYSTEM_SOCKET, default_socket
from gatepass.replies import status_reply, verified_token, whoami_reply
from gatepass.revocations import Cut, Revocation, Standing
from gatepass.tokens import Expected, VerificationKey, b64decode, header, jwk, key_table, thumbprint
from gatepass_broker import keys, server, state
from gatepass_broker.caller import Caller
from gatepass_broker.decide import DEFAULT_AUDIENCE, OPERATION_GROUPS, decide
from gatepass_broker.events import KeyAdded, KeyRetired, Locked, Revoked, Unlocked
from gatepass_broker.followers import Followers
from gatepass_broker.inquiry import Decision, Inquiry, Surroundings
from gatepass_broker.judge import Rules
from gatepass_broker.policy import Grant, Rule, condition
from gatepass_broker.schema import BrokerTable, LimitsTable
from gatepass_broker.state import State

PAGE: Final = (Path(__file__).resolve().parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
PRIVATE: Final = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC: Final = PRIVATE.public_key().public_bytes_raw()
MOMENT: Final = Moment(1_900_000_000, 5_000, "0123456789abcdef0123456789abcdef")

Row = dict[str, str]


def section(title: str) -> str:
    """Return what stands under a heading, without what stands under later ones."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found.group(1)


def tables(title: str) -> list[list[Row]]:
    """Return the tables of a section, each row by its column's title."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", section(title), re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def examples(title: str, language: str = "json") -> list[str]:
    """Return the fenced blocks of a section."""
    return re.findall(rf"^```{language}\n(.*?)^```", section(title), re.MULTILINE | re.DOTALL)


def values(text: str) -> Iterator[Any]:
    """Return the JSON values in a block, one after the other."""
    text = text.strip()
    while text:
        value, end = json.JSONDecoder().raw_decode(text)
        yield value
        text = text[end:].lstrip()


def bare(cell: str) -> str:
    """Return a cell's one word of code."""
    assert re.fullmatch(r"`[^`]*`", cell), cell
    return cell.strip("`")


# --- Frames


def test_the_frames_in_hex_are_those_of_the_messages_before_them() -> None:
    shown = re.findall(
        r"^The re(?:quest|ply) `(\{.*?\})` is (?:this frame|this one):\n\n```hex\n(.*?)^```",
        PAGE,
        re.MULTILINE | re.DOTALL,
    )
    assert len(shown) == 2
    for message, block in shown:
        lines = [re.match(r"((?:[0-9a-f]{2} ?)+?)(?: +\S.*)?$", line) for line in block.splitlines()]
        data = b"".join(bytes.fromhex(line.group(1)) for line in lines if line is not None)
        assert data == encode_frame(json.loads(message))


def test_the_page_has_one_row_for_each_type() -> None:
    allowed = {"map": {}, "array": [], "string": "", "integer": 2**64 - 1, "boolean, nil": True}
    (rows,) = tables("Frames")
    named = [row["Type"] for row in rows]
    assert named == [*allowed, "float", "bin, ext, timestamp"]
    for value in allowed.values():
        assert decode_body(encode_frame({"x": value})[4:]) == {"x": value}
    for refused in (1.0, b""):
        with pytest.raises(ProtocolError):
            decode_body(encode_frame({"x": refused})[4:])
    assert f"At most {4096} entries." in PAGE
    assert f"nested at most {frames.MAX_DEPTH} deep" in PAGE


@pytest.mark.parametrize("kind", ["array", "map"])
def test_as_many_items_as_the_page_says(kind: str) -> None:
    def body(count: int) -> bytes:
        value: Any = [0] * count if kind == "array" else {str(number): 0 for number in range(count)}
        return encode_frame({"x": value})[4:]

    decode_body(body(4_096))
    with pytest.raises(ProtocolError):
        decode_body(body(4_097))


# --- Requests and replies


def test_the_members_of_a_request() -> None:
    request = parse_request({"v": 1, "id": messages.MAX_ID, "op": "status"})
    assert request.id == 4_294_967_295
    (rows,) = tables("Requests and replies")
    assert [bare(row["Member"]) for row in rows] == ["v", "id", "op"]
    assert f"The version of this protocol: {messages.VERSION}." in PAGE


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"v": 2, "op": "x", "y": 1}, ErrorCode.MALFORMED),
        ({"v": 2, "id": 1, "op": "x", "y": 1}, ErrorCode.UNSUPPORTED_VERSION),
        ({"v": 1, "id": 1, "op": "x", "y": 1}, ErrorCode.UNKNOWN_OPERATION),
        ({"v": 1, "id": 1, "op": "issue", "y": 1}, ErrorCode.INVALID_REQUEST),
        ({"v": 1, "id": 1, "op": "issue", "scope": None}, ErrorCode.INVALID_REQUEST),
        ({"v": 1, "id": 1, "op": "issue", "scope": "x" * 4_097}, ErrorCode.INVALID_REQUEST),
        ({"v": 1, "id": 1, "op": "issue", "scope": "\u00a0"}, ErrorCode.INVALID_REQUEST),
        ({"v": 1, "id": 1, "op": "issue", "scope": "\u200b"}, ErrorCode.INVALID_REQUEST),
    ],
)
def test_a_request_is_checked_in_the_order_of_the_page(message: Message, code: ErrorCode) -> None:
    steps = re.findall(r"^\d\. .*", section("Requests and replies"), re.MULTILINE)
    codes = [word for step in steps for word in re.findall(r"`(\w+)`", step) if word in list(ErrorCode)]
    assert codes == [
        ErrorCode.MALFORMED,
        ErrorCode.MALFORMED,
        ErrorCode.UNSUPPORTED_VERSION,
        ErrorCode.UNKNOWN_OPERATION,
        ErrorCode.INVALID_REQUEST,
        ErrorCode.OPERATION_NOT_ALLOWED,
    ]
    with pytest.raises((ProtocolError, InvalidRequestError)) as refused:
        parse_request(message)
    assert refused.value.code is code


def test_the_error_reply_that_is_shown() -> None:
    first, second = list(values(examples("Requests and replies")[0]))
    assert first["ok"] is True
    with pytest.raises(TryLaterError) as refused:
        parse_reply(second, 7)
    assert refused.value.retry_after == 60


# --- Operations

KEY: Final = jwk(PUBLIC)
RULE: Final = Rule(
    (condition("uid", 1000),),
    Grant("derek", "derek@example.com", (DEFAULT_AUDIENCE,), ("operator.read",), 600),
)
RULES: Final = Rules("gatepass:host", (RULE,), 300, "broker.toml")


def published() -> State:
    """Return the state of a broker with the page's key."""
    present = State()
    present.apply(KeyAdded(time=MOMENT.time, kid=KEY["kid"], x=KEY["x"], signs_until=1_900_086_400))
    return present


def decided(request: Message) -> Message:
    """Return the whole reply to a request, as the broker makes it."""
    check = signature_check(PUBLIC)
    table = key_table([VerificationKey(KEY["kid"], check)])
    inquiry = Inquiry(
        operation=parse_request(request).operation,
        caller=Caller(1000, 1001, frozenset({27}), 4711, None),
        exited=False,
        allowed=frozenset({"request", "follow", "admin"}),
        moment=MOMENT,
        token_id="AAECAwQFBgcICQoLDA0ODw",
    )
    present, followers = published(), Followers()
    if request["op"] == "follow":
        present.apply(REVOKED)
    if request["op"] in GATEWAYS_THERE:
        followers.add("proxy", "openclaw's proxy", MOMENT.time)
        followers.read("proxy", ReportRequest(present.generation))
    if request["op"] == "unlock":
        present.apply(Locked(time=1, uid=0))
    around = Surroundings("0.1.0", 3, 0, table, followers, lambda _: False)
    decision = decide(RULES, present, around, inquiry)
    assert isinstance(decision.result, dict), decision.result
    token = {} if decision.claims is None else {"token": "eyJhbGci…"}
    outcome = {**acted_on(decision, present, followers), "recorded": True} if decision.awaits_followers else {}
    return messages.ok_message(request["id"], {**token, **decision.result, **outcome})


GATEWAYS_THERE: Final = ("sessions", "revoke", "lock", "unlock")
REVOKED: Final = Revoked(
    time=1, by=Cut.UID, value="1001", issued_until=1_899_999_000, boottime=1, needed_until=9_999, uid=0
)


def acted_on(decision: Decision, present: State, followers: Followers) -> Message:
    """Let the page's one gateway carry the decision out. A session of it ends by that, unless it ends a lock."""
    ends = not any(isinstance(event, Unlocked) for event in decision.events)
    example = next(values(examples("report")[0]))
    followers.read("proxy", ReportRequest(0, tuple(example["opened"])))
    for event in decision.events:
        present.apply(event)
    progress = followers.progress(present.generation)
    followers.read("proxy", ReportRequest(progress.seq, closed=(example["opened"][0]["id"],) if ends else ()))
    return followers.outcome(progress)


def page_token() -> str:
    """Return the token that the page gives to test with."""
    (token,) = re.findall(r"^eyJ\S+\.\S+\.\S+$", PAGE, re.MULTILINE)
    return str(token)


def test_the_table_of_operations() -> None:
    (rows,) = tables("Operations")
    shown: dict[str, dict[str, Row]] = {}
    name = ""
    for row in rows:
        if row["Operation"]:
            name = bare(row["Operation"])
            shown[name] = {}
            assert bare(row["Group"]) == OPERATION_GROUPS[OPERATIONS[name]]
        if row["Parameter"]:
            shown[name][bare(row["Parameter"])] = row
    assert list(shown) == list(OPERATIONS)
    for name, kind in OPERATIONS.items():
        assert tuple(shown[name]) == kind._fields
        for parameter, hint in get_type_hints(kind).items():
            row = shown[name][parameter]
            assert row["Type"].startswith(type_on_the_page(hint)), parameter
            assert (row["If left out"] == "required") == (parameter not in kind._field_defaults)
    assert f"default life ({default(BrokerTable, 'default_ttl')} unless" in shown["issue"]["ttl"]["If left out"]
    assert f"`{DEFAULT_AUDIENCE}`" in shown["verify"]["audience"]["If left out"]


def type_on_the_page(hint: Any) -> str:
    """Return how the type of a parameter begins."""
    if "tuple" in str(hint):
        return "list of"
    return "integer" if int in (hint, *getattr(hint, "__args__", ())) else "string"


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_answered_as_its_example_shows(name: str) -> None:
    (request,), (reply,) = (list(values(block)) for block in examples(name))
    assert parse_request(request).operation.__class__ is OPERATIONS[name]

    sent = {**request, "token": page_token()} if name == "verify" else request
    made = decided(sent)
    if name == "status":
        reply |= {"issued": 0, "refused": 0, "uptime": made["uptime"], "started": 0, "configured": 0}
    if name == "explain":
        made["cures"] = made["cures"][:1]  # the page says that it shows the first
    assert made == reply

    result = parse_reply(reply, request["id"])
    reader = {"issue": issued_token, "whoami": whoami_reply, "status": status_reply, "verify": verified_token}.get(name)
    if reader is not None:
        reader(result)


TYPES: Final[dict[str, Any]] = {
    "string": str,
    "boolean": bool,
    "string or nil": str | None,
    "list of strings or nil": list | None,
    "list of lists": list,
    "integer": int,
    "integer or nil": int | None,
    "map": dict,
    "map or nil": dict | None,
    "list of strings": list,
    "list of integers": list,
    "list of maps": list,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_members_of_a_reply_are_those_of_the_table(name: str) -> None:
    rows = [row for table in tables(name) for row in table]
    _, (reply,) = (list(values(block)) for block in examples(name))
    members = {key: value for key, value in flat(reply).items() if key not in ("id", "ok")}
    kinds = {bare(row["Member"]): TYPES[row["Type"]] for row in rows}
    if name in ("lock", "unlock"):
        kinds = {bare(row["Member"]): TYPES[row["Type"]] for row in tables("revoke")[0]}
    inner = ("claims.", "keys.") if name in ("verify", "follow") else ("cures.arguments.",)
    assert list(kinds) == [key for key in members if not key.startswith(inner or "\0")]
    for member, kind in kinds.items():
        assert isinstance(members[member], kind), member


def flat(message: Message, prefix: str = "") -> Message:
    """Return the members of a map, and those of maps in it as `outer.inner`."""
    found: Message = {}
    for key, value in message.items():
        found[prefix + key] = value
        inner = value[0] if isinstance(value, list) and value else value
        if isinstance(inner, dict):
            found |= flat(inner, f"{prefix}{key}.")
    return found


def test_seq_also_counts_when_a_key_stops_signing() -> None:
    present = published()
    before = present.generation
    present.apply(KeyRetired(time=1, kid=KEY["kid"], published_until=2))
    assert (present.generation, list(present.keys)) == (before + 1, [KEY["kid"]])


# --- Errors

KINDS: Final[dict[str, type[GatepassError]]] = {
    "protocol": ProtocolError,
    "denied": DeniedError,
    "later": TryLaterError,
    "token": TokenError,
}


def test_every_error_code_is_on_the_page_once() -> None:
    shown = [bare(row["Code"]) for table in tables("Errors") for row in table]
    assert shown == [str(code) for code in sorted(ErrorCode, key=shown.index)]
    assert len(shown) == len(ErrorCode)


def test_the_kind_of_each_code_of_the_broker() -> None:
    for row in tables("Errors")[0]:
        assert type(error_from_wire(bare(row["Code"]), "")) is KINDS[row["Kind"]], row


def test_a_code_that_is_not_known_is_of_no_kind() -> None:
    assert type(error_from_wire("new_code", "")) is GatepassError


# --- Limits


def default(table: type[Any], name: str) -> int:
    """Return the default of a key of the configuration."""
    value: int = next(field.default for field in fields(table) if field.name == name)
    return value


def test_the_limits_are_those_of_the_code() -> None:
    (rows,) = tables("Limits and deadlines")
    shown = {row["Limit"]: (int(row["Value"].split()[0]), row["Configurable"] == "yes") for row in rows}
    assert shown == {
        "Body of a frame": (frames.MAX_FRAME, False),
        "Nesting of maps and arrays": (frames.MAX_DEPTH, False),
        "Items of an array, entries of a map": (4_096, False),
        "String parameter": (messages.MAX_TEXT, False),
        "Token": (tokens.MAX_TOKEN, False),
        "Path of the socket": (server_identity.MAX_PATH, False),
        "A frame, from its first byte to its last": (default(LimitsTable, "frame_seconds"), True),
        "Reading the replies that the broker has sent": (default(LimitsTable, "frame_seconds"), True),
        "A connection without a request": (default(LimitsTable, "idle_seconds"), True),
        "Connections of one user": (default(LimitsTable, "connections_per_uid"), True),
        "Connections of all users": (default(LimitsTable, "connections"), True),
        "Requests of one connection that are answered before others have their turn": (
            default(LimitsTable, "pipelined"),
            True,
        ),
        "Connections that wait to be accepted": (server.BACKLOG, False),
        "Refusals of one user in a minute before `rate_limited`": (state.REFUSALS_PER_MINUTE, False),
        "Life of a token if `ttl` is left out": (default(BrokerTable, "default_ttl"), True),
        "Longest life of a token": (default(BrokerTable, "max_ttl"), True),
    }


@pytest.mark.parametrize(
    "sentence",
    [
        f"the environment variable `{SOCKET_VARIABLE}`",
        f"3. `{SYSTEM_SOCKET}`",
        f"has at most {server_identity.MAX_PATH} bytes",
        f"The id {server_identity.UNMAPPED_UID} stands for",
        f"Wait {patience.FIRST_DELAY:g} s before the second attempt and twice as long each further time, up to "
        f"{patience.LONGEST_DELAY:g} s.",
        f"Give each call a deadline ({client.DEFAULT_TIMEOUT:g} s is a good one)",
        f"more than {state.REFUSALS_PER_MINUTE} times in a minute",
        f"More than {default(LimitsTable, 'pipelined')} pipelined requests",
        f"`boot.exp` - (`exp` - `iat`) - {tokens.CLOCK_LEEWAY}.",
        f"published {keys.OVERLAP} s before it signs",
        f"for up to {server.DRAIN_SECONDS:g} s, and then closes",
        f"At most {keys.MAX_PUBLISHED} keys that no longer sign",
        f"*Seconds* are integers from 0 to 2^{MAX_SECONDS.bit_length() - 1}.",
        f"the actor before it. At most {MAX_ACTORS}.",
        f"`RANDOM` is the base64url of {openclaw.RANDOM_BYTES} random bytes",
        f"`REASON` is an error code of this page or `{openclaw.ASKED_BY_GATEWAY}`",
        f"{openclaw.NO_TOKEN_PREFIX}REASON.RANDOM",
        f"it is complete when it can be parsed. It has at most {openclaw_secret.MAX_REQUEST} bytes.",
        f"Give up after {openclaw_secret.BUDGET:g} s, the broker after {openclaw_secret.BROKER_SHARE:g} s",
    ],
)
def test_numbers_and_names_in_sentences(sentence: str) -> None:
    assert sentence in " ".join(PAGE.split())


def test_where_the_socket_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "gatepass").mkdir()
    (tmp_path / "gatepass/broker.sock").touch()
    found = str(tmp_path / "gatepass/broker.sock")
    assert default_socket({"GATEPASS_SOCKET": "", "XDG_RUNTIME_DIR": str(tmp_path)}) == found
    assert "`$XDG_RUNTIME_DIR/gatepass/broker.sock`" in section("Find the socket")


# --- The token


def test_the_header_is_the_one_on_the_page() -> None:
    (text,) = (block.strip() for block in examples("The token", "text"))
    assert b64decode(header("KID")).decode() == text


def test_the_claims_are_those_of_the_table() -> None:
    (rows,) = tables("Claims")
    kinds = {"text": str, "string": str, "seconds": int, "integer": int, "object": dict}
    claims = flat(claims_to_json(bound_claims()))
    assert [bare(row["Claim"]) for row in rows] == list(claims)
    for row in rows:
        assert type(claims[bare(row["Claim"])]) is kinds[row["Type"]], row


def page_claims() -> Claims:
    """Return what the page's token says."""
    return decode_payload(b64decode(page_token().split(".")[1]))


def test_the_token_on_the_page_verifies_and_says_what_the_example_shows() -> None:
    table = key_table([VerificationKey(KEY["kid"], signature_check(PUBLIC))])
    claims = tokens.check_token(page_token(), table, Expected("gatepass:host", DEFAULT_AUDIENCE, MOMENT))
    tokens.check_binding(claims, tokens.Presenter(1000))
    _, (reply,) = (list(values(block)) for block in examples("verify"))
    assert claims_to_json(claims) == reply["claims"]
    assert tokens.encode_token(claims, header(KEY["kid"]), PRIVATE.sign) == page_token()
    for word in (str(int(MOMENT.time)), str(int(MOMENT.boottime)), MOMENT.boot_id):
        assert word in section("How to verify")


def test_the_steps_of_verifying_come_in_the_order_of_the_page() -> None:
    """A token with several faults is refused for the one that the page names first."""
    (rows,) = tables("How to verify")
    codes = [bare(row["Else"]) for row in rows]
    assert [int(row["Step"]) for row in rows] == list(range(1, 15))
    assert {*codes} == {code for code in ErrorCode if code.startswith("token_")}

    def refusal(token: str, issuer: str, audience: str, moment: Moment, presenter: tokens.Presenter) -> str:
        table = key_table([VerificationKey(KEY["kid"], signature_check(PUBLIC))])
        try:
            claims = tokens.check_token(token, table, Expected(issuer, audience, moment))
            tokens.check_binding(claims, presenter)
            revoked.check(claims)
        except TokenError as error:
            return error.code.value
        return "good"

    good = page_token()
    protected, payload, signature = good.split(".")
    altered = f"{protected}.{payload}.{'A' * len(signature)}"
    no_claims = tokens.b64encode(b"[]")
    text = f"{protected}.{no_claims}"
    signed = f"{text}.{tokens.b64encode(PRIVATE.sign(text.encode()))}"
    nobody = tokens.Presenter(1)
    wrong = ("gatepass:other", "elsewhere", Moment(2_000_000_000, 0, "f" * 32), nobody)
    issuer, audience, moment = "gatepass:host", DEFAULT_AUDIENCE, MOMENT
    bound = tokens.encode_token(bound_claims(), protected, PRIVATE.sign)
    user = tokens.Presenter(1000)
    in_cgroup = user._replace(is_in_cgroup=lambda cgroup: cgroup == 9)
    alive = in_cgroup._replace(is_alive=lambda process: process == Process(4711, 77))
    early = moment._replace(boottime=0)
    revoked = Standing(False, (Revocation(Cut.ALL, "", 1_900_000_000),))
    found = [
        refusal(f"x{'.' * 5_000}", *wrong),
        refusal(f"x{altered}=", *wrong),
        refusal(f"{altered}=", *wrong),
        refusal(altered, *wrong),
        refusal(signed, *wrong),
        refusal(good, *wrong),
        refusal(good, issuer, *wrong[1:]),
        refusal(good, issuer, audience, *wrong[2:]),
        refusal(good, issuer, audience, early._replace(time=2_000_000_000), nobody),
        refusal(good, issuer, audience, early, nobody),
        refusal(bound, issuer, audience, moment, nobody),
        refusal(bound, issuer, audience, moment, user),
        refusal(bound, issuer, audience, moment, in_cgroup),
        refusal(bound, issuer, audience, moment, alive),
    ]
    assert found == codes
    revoked = Standing()
    assert refusal(bound, issuer, audience, moment, alive) == "good"
    assert refusal(good, issuer, audience, moment, user) == "good"


def bound_claims() -> Claims:
    """Return the claims of the page's token, bound to all that one can be bound to."""
    confirmation = Confirmation(1000, cgroup=9, process=Process(4711, 77))
    return page_claims()._replace(confirmation=confirmation, reconnect=3_600)


# --- Keys and secrets


def test_a_key_has_the_members_of_the_table() -> None:
    (rows,) = tables("Keys")
    assert [bare(row["Member"]) for row in rows] == list(KEY)
    for row in rows:
        if row["Value"].startswith("`"):
            assert KEY[bare(row["Member"])] == bare(row["Value"])
    (shown,) = [next(values(block)) for block in examples("How to verify")]
    assert shown == KEY
    assert thumbprint(PUBLIC) == KEY["kid"]


def test_the_exchange_with_openclaw() -> None:
    request, answer = list(values(examples("OpenClaw's exec secrets")[0]))
    ids = openclaw.parse_request(json.dumps(request).encode())
    assert json.loads(openclaw.response(dict.fromkeys(ids, "eyJhbGci…"))) == answer
