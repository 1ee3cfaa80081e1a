"""A real nginx on a booted machine, in front of OpenClaw: it asks an authority who the user is (`auth_request`)."""

from __future__ import annotations

from functools import partial

from e2e.callers import Answer, http_request
from e2e.machine import BridgeContainer, Machine
from e2e.network import run_in_network
from e2e.openclaw_instance import Account

ALICE = "alice@example.com"
SESSION = "session=alices"
PUBLIC_PORT = 8080

CONFIG = """
user www-data;
pid /run/nginx.pid;
events {{}}
http {{
    access_log off;
    # Stands for oauth2-proxy: it knows one session.
    server {{
        listen unix:/run/authority.sock;
        location / {{
            if ($cookie_session != "alices") {{ return 401; }}
            add_header X-Auth-Request-Email {alice};
            return 204;
        }}
    }}
    server {{
        listen {port};
        location = /auth {{
            internal;
            proxy_pass http://unix:/run/authority.sock:/;
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
        }}
        location / {{
            auth_request /auth;
            auth_request_set $email $upstream_http_x_auth_request_email;
            proxy_pass http://127.0.0.1:18789;
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header {header} $email;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header Authorization "";
        }}
    }}
}}
"""


class Nginx:
    """Debian's nginx, as the unit `nginx.service`."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def start(self, user_header: str) -> None:
        """Configure it as the guide says, and start it now and at every boot."""
        config = CONFIG.format(alice=ALICE, port=PUBLIC_PORT, header=user_header)
        self.machine.write("/etc/nginx/nginx.conf", config)
        self.machine.systemctl("enable", "nginx.service")
        self.machine.systemctl("restart", "nginx.service")

    def ask(self, container: BridgeContainer, headers: list[tuple[str, str]]) -> Answer:
        """Send a request from elsewhere, as a person's browser does."""
        request = partial(http_request, PUBLIC_PORT, "GET", "/v1/models", headers, host=container.host_address)
        return run_in_network(container.namespace, Account(4243, 4243), request)
