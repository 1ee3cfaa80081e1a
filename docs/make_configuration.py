"""Write docs/configuration.md and docs/schema from the code: run `.venv/bin/python docs/make_configuration.py` after a
change there.

Keys, values and defaults come from the msgspec schemas, meanings from the docstrings under the fields, exit statuses
and names of variables from the constants. Unit tests fail while what is written is older than they are.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import inspect as forms

from gatepass.cli import child, manners, run
from gatepass.errors import ErrorCode
from gatepass.openclaw_caller import PORT_VARIABLE
from gatepass.paths import SOCKET_VARIABLE, SYSTEM_SOCKET
from gatepass_broker import schema as broker_schema
from gatepass_gateway import schema as gateway_schema

PAGE: Final = Path(__file__).with_name("configuration.md")
SCHEMAS: Final = Path(__file__).with_name("schema")
WIDTH: Final = 120
LAST_ID: Final = 2**32 - 2
"""Of users and groups."""

_HEAD: Final = """\
<!-- Made by docs/make_configuration.py from the code. Do not change this page: change the code, and run that. -->
# Configuration

What each program reads: [`broker.toml`](#brokertoml), [`gateway.toml`](#gatewaytoml), [environment
variables](#environment-variables), and the [exit statuses](#exit-statuses) that it returns.

Both files are TOML. A key that does not exist is an error, so that a misspelt limit is not no limit; the message names
the file, the key and the nearest name that does exist. The file, and every directory above it, must belong to root or
to the user who runs the program, and nobody else may be able to write to it. Look before you start:

```sh
gatepass-broker --config /etc/gatepass/broker.toml --check
gatepass-gateway --config /etc/gatepass/gateway.toml --check
```

An editor that knows TOML's language server, taplo, checks and completes the files by the JSON Schemas in
[`schema/`](schema/). Copy the schema beside the file and name it in the file's first line:

```
#:schema ./broker.schema.json
```

`gateway.schema.json` is for the proxy's file, `rules.schema.json` for those in `conf.d`.
"""

_BROKER: Final = """\
The broker can also run without a file, for one person: `gatepass-broker --loopback-user NAME`. With a file, SIGHUP
reads it again, and [`conf.d`](#confd) with it. If something there is wrong, the last good configuration stays in force
and the log says why. `broker.id`, `broker.state_dir`, `broker.jwks_file`, `[journal]` and `[[socket]]` take a restart.

```toml
[broker]
loopback_user = "derek@example.com"

[[socket]]
path = "/run/gatepass/broker.sock"
group = "gatepass"

[[socket]]                              # for the proxy, which needs nothing but the public keys
path = "/run/gatepass/follow.sock"
group = "gatepass-gateway"
allow = ["follow"]

[[rule]]                                # the service's processes, and what they start
name = "openclaw"
user = "openclaw"
unit = "openclaw.service"
scopes = ["operator.read", "operator.write"]
bind = "unit"                           # whoever else gets hold of such a token cannot use it

[[rule]]
name = "people"
group = "gatepass"
scopes = ["operator.read"]
```

`gatepass explain` says which rule matches, where the others fail, and which change would allow a request.
"""

_RULES: Final = """\
More rules, each file for a purpose of its own: those in `conf.d/*.toml`, in the directory of `broker.toml`, come after
its rules, by the names of the files. A file there holds `[[rule]]` tables and nothing else. Other names, and those that
begin with a dot, are not read. What holds for the owner and mode of `broker.toml` holds for each file and for `conf.d`
itself; a file that is a symbolic link is refused. All rules must have different names.

```toml
[[rule]]
name = "agents in containers"
user = "openclaw"
slice = "agents.slice"
pid_namespace = "nested"
scopes = ["operator.read"]
max_ttl = 120
per_minute = 30
```
"""

_GATEWAY: Final = """\
The proxy reads its file once, at start; a change takes a restart. For OpenClaw `gatepass openclaw setup` writes it.

```toml
[listen]
port = 18789

[upstream]
port = 18790
user = "derek"

[identity]
user_header = "x-gatepass-user-0123456789abcdef0123456789abcdef"    # make your own
[identity.users]
"derek@example.com" = ["operator.read", "operator.write", "operator.admin"]
```
"""

_VARIABLES: Final = {
    SOCKET_VARIABLE: "The broker's socket, for `gatepass`, the library and `gatepass-gateway`. Default: a personal "
    f"broker's, `$XDG_RUNTIME_DIR/gatepass/broker.sock`, if it is there; else `{SYSTEM_SOCKET}`. `gatepass run` sets "
    "it for its command.",
    run.TOKEN_FILE_VARIABLE: "Set by `gatepass run` for its command: the file that holds a token which is always "
    "fresh. Read it anew for each use.",
    "XDG_RUNTIME_DIR": "Where a personal broker's socket and its JWKS file are, in `gatepass/`. "
    "Default: `/run/user/UID`.",
    "XDG_STATE_HOME": "Where a personal broker's journal is, in `gatepass/`. Default: `~/.local/state`.",
    "XDG_CONFIG_HOME": "Where `gatepass openclaw setup` puts the proxy's configuration, in `gatepass/`. "
    "Default: `~/.config`.",
    "LISTEN_FDS": "Set by systemd, with `LISTEN_PID` and `LISTEN_FDNAMES`: sockets that it hands over to the daemons, "
    "and the broker's signing keys that it keeps.",
    "NOTIFY_SOCKET": "Set by systemd, with `WATCHDOG_USEC`: where the daemons say how they are.",
    "CREDENTIALS_DIRECTORY": "Set by systemd: the broker looks there for `signing-seed` ([signing "
    "keys](systemd.md#signing-keys)).",
    "OPENCLAW_CONFIG_PATH": "OpenClaw's own: which configuration `gatepass openclaw setup` and `check` are about.",
    "OPENCLAW_STATE_DIR": "OpenClaw's own: counts for them too.",
    PORT_VARIABLE: "Set by OpenClaw for what it starts. `gatepass openclaw secret` tells by it whether the gateway "
    "itself is asking, so `passEnv` must name it.",
}

_STATUSES: Final = {
    manners.DONE: "done",
    manners.FAILURE: "failure; the message says which",
    manners.USAGE: "wrong use: an option or a command that does not exist",
    manners.DENIED: "denied: asking again changes nothing",
    manners.TRY_LATER: "the broker cannot answer now: try later",
    manners.UNREACHABLE: "no broker could be asked, or not the right one",
    manners.MISCONFIGURED: "a configuration cannot be used",
    manners.INTERRUPTED: "interrupted from the keyboard",
}

_OF_RUN: Final = {
    str(run.OWN_FAILURE): "`gatepass run` failed itself, before its command ran",
    str(child.NOT_EXECUTABLE): "its command could not be executed",
    str(child.NOT_FOUND): "its command was not found",
    f"{child.SIGNALLED}+N": "signal N ended its command",
}


class Key(NamedTuple):
    """A key of a table, as the page shows it."""

    name: str
    value: str
    default: str
    meaning: str


def page() -> str:
    """Return the whole page."""
    sections = [
        _HEAD,
        "## broker.toml\n",
        _BROKER,
        *_tables(broker_schema, broker_schema.File),
        "## conf.d\n",
        _RULES,
        "## gateway.toml\n",
        _GATEWAY,
        *_tables(gateway_schema, gateway_schema.File),
        "## Environment variables\n",
        _table(("variable", "meaning"), ((f"`{name}`", meaning) for name, meaning in sorted(_VARIABLES.items()))),
        "## Exit statuses\n",
        _statuses(),
    ]
    return "\n".join(sections)


def schemas() -> Mapping[str, str]:
    """Return the JSON Schemas by the names of their files."""
    forms: Mapping[str, tuple[ModuleType, type[msgspec.Struct]]] = {
        "broker.schema.json": (broker_schema, broker_schema.File),
        "rules.schema.json": (broker_schema, broker_schema.RulesFile),
        "gateway.schema.json": (gateway_schema, gateway_schema.File),
    }
    return {name: f"{json.dumps(_schema(*form), indent=2)}\n" for name, form in forms.items()}


def _schema(module: ModuleType, file: type[msgspec.Struct]) -> dict[str, Any]:
    """Return a file's schema. Draft 7 is the newest that taplo is sure to know."""
    schema = _without_null(msgspec.json.schema(file))
    for name, table in schema["$defs"].items():
        table["description"] = " ".join(table["description"].split())
        for key, meaning in _docstrings(module, name).items():
            if key in table["properties"]:
                table["properties"][key]["description"] = meaning
    return {"$schema": "http://json-schema.org/draft-07/schema#", **schema}


def _without_null(node: Any) -> Any:  # noqa: ANN401 - JSON
    """Return a schema without null, which TOML does not have: a key that would be null is left out."""
    if isinstance(node, list):
        return [_without_null(item) for item in node if item != {"type": "null"}]
    if not isinstance(node, dict):
        return node
    made = {key: _without_null(value) for key, value in node.items() if not (key == "default" and value is None)}
    kinds = made.get("anyOf")
    if kinds is not None and len(kinds) == 1:
        del made["anyOf"]
        made |= kinds[0]
    return made


def _tables(module: ModuleType, file: type[msgspec.Struct]) -> Iterator[str]:
    for field in _fields(file):
        form = field.type
        repeated = isinstance(form, forms.VarTupleType)
        if isinstance(form, forms.VarTupleType):
            form = form.item_type
        if not isinstance(form, forms.StructType):
            raise TypeError(f"{file}.{field.name} is not a table")
        heading = f"[[{field.name}]]" if repeated else f"[{field.name}]"
        yield f"### `{heading}`\n"
        if purpose := _purpose(form.cls):
            yield f"{textwrap.fill(purpose, WIDTH, break_on_hyphens=False)}\n"
        yield _table(("key", "value", "default", "meaning"), (_row(key) for key in _keys(module, form.cls)))


def _keys(module: ModuleType, table: type) -> Iterator[Key]:
    meanings = _docstrings(module, table.__name__)
    for field in _fields(table):
        yield Key(field.name, _value(field.type), _default(field), meanings.get(field.name, ""))


def _row(key: Key) -> tuple[str, ...]:
    return (f"`{key.name}`", key.value, key.default, key.meaning)


def _fields(table: type) -> tuple[forms.Field, ...]:
    form = forms.type_info(table)
    if not isinstance(form, forms.StructType):
        raise TypeError(f"{table} is not a table")
    return form.fields


def _purpose(table: type) -> str:
    """Return what a table's docstring says after its heading, as one paragraph that begins with a capital."""
    text = " ".join(inspect.cleandoc(table.__doc__ or "").split())
    text = re.sub(r"^`\[+\w+\]+`[.:]? ?", "", text)
    return text[:1].upper() + text[1:]


def _docstrings(module: ModuleType, table: str) -> Mapping[str, str]:
    """Return the strings that stand under the fields of a class: Python itself keeps none of them."""
    tree = ast.parse(inspect.getsource(module))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == table)
    found = {}
    for field, below in pairwise(body):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            found[field.target.id] = " ".join(below.value.value.split())
    return found


def _value(form: forms.Type) -> str:  # noqa: PLR0911 - one for each kind
    match form:
        case forms.UnionType():
            return " or ".join(_value(kind) for kind in form.types if not isinstance(kind, forms.NoneType))
        case forms.VarTupleType():
            item = _value(form.item_type)
            return f"list of ({item})" if " or " in item else f"list of {item}"
        case forms.DictType():
            return f"table of {_value(form.key_type)} to {_value(form.value_type)}"
        case forms.LiteralType():
            return " or ".join(f"`{json.dumps(value)}`" for value in form.values)
        case forms.IntType():
            return "id number" if form.le == LAST_ID else f"whole number{_range(form)}"
        case forms.FloatType():
            return f"number{_range(form)}"
        case forms.StrType(pattern=str(pattern)):
            return f"string like `{pattern}`"
        case forms.StrType():
            return "string"
    raise TypeError(f"no words for {form}")


def _range(form: forms.IntType | forms.FloatType) -> str:
    low = f"from {form.ge:,}" if form.ge is not None else f"more than {form.gt:,}" if form.gt is not None else ""
    high = f"to {form.le:,}" if form.le is not None else ""
    return f" {low} {high}".rstrip() if low or high else ""


def _default(field: forms.Field) -> str:
    if field.required:
        return "must be there"
    default = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if default is None:
        return "none"
    if isinstance(default, tuple):
        default = list(default)
    return f"`{json.dumps(default)}`"


def _statuses() -> str:
    numbers = [(str(status), meaning) for status, meaning in _STATUSES.items() if status < manners.INTERRUPTED]
    faults = [(str(status), _fault(code)) for code, status in manners.TOKEN_FAULTS.items()]
    interrupted = (str(manners.INTERRUPTED), _STATUSES[manners.INTERRUPTED])
    return _table(("status", "of `gatepass`"), [*numbers, *faults, *_OF_RUN.items(), interrupted]) + (
        "\nThe daemons and `gatepass-broker install` return 0, 1, 2, 6 or 130, with the same meaning. `gatepass\n"
        "openclaw secret` returns 0 always: OpenClaw must start without a broker, too. What each error means, and\n"
        "what to do about it, is in [troubleshooting](troubleshooting.md).\n"
    )


def _fault(code: ErrorCode) -> str:
    return f"the token was refused: [`{code}`](troubleshooting.md#{code})"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    SCHEMAS.mkdir(exist_ok=True)
    for schema_name, schema_text in schemas().items():
        (SCHEMAS / schema_name).write_text(schema_text, encoding="utf-8")
