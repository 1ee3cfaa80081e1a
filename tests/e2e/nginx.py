"""A real nginx on a booted machine, in front of OpenClaw: it asks an authority who the user is (`auth_request`)."""

from __future__ import annotations

from functools import partial

from e2e.callers import Answer, Login, http_request, log_in
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
    map $http_upgrade $connection_upgrade {{ default upgrade; "" close; }}
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
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
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

    def log_in(self, container: BridgeContainer) -> Login:
        """Open a WebSocket session from elsewhere, as Alice's browser does."""
        session = partial(log_in, PUBLIC_PORT, None, headers={"Cookie": SESSION}, host=container.host_address)
        return run_in_network(container.namespace, Account(4243, 4243), session)

    def ask(self, container: BridgeContainer, headers: list[tuple[str, str]]) -> Answer:
        """Send a request from elsewhere, as a person's browser does."""
        request = partial(http_request, PUBLIC_PORT, "GET", "/v1/models", headers, host=container.host_address)
        return run_in_network(container.namespace, Account(4243, 4243), request)
