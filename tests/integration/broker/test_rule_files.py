"""Files of rules in conf.d: a running broker reads them again at SIGHUP, and keeps the last good ones."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from support.broker import BrokerProcess, RawClient, broker_tables, error_code


def test_a_rule_in_conf_d_counts_from_the_reload_on(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path, rules=[]) as broker, RawClient(broker.socket) as client:
        assert error_code(client.ask(op="issue")) == "denied"

        (tmp_path / "conf.d").mkdir(mode=0o755)
        path = tmp_path / "conf.d" / "own.toml"
        path.write_text(f'[[rule]]\nuid = {os.geteuid()}\nscopes = ["operator.read"]\n')
        path.chmod(0o600)
        broker.signal(signal.SIGHUP)
        broker.wait_for_log("configuration reloaded")
        assert client.ask(op="issue")["scope"] == "operator.read"

        path.chmod(0o666)
        broker.signal(signal.SIGHUP)
        broker.wait_for_log("the last good one stays")
        assert str(path) in broker.log
        assert client.ask(op="issue")["ok"]

        broker.write_config(broker_tables(tmp_path, rules=[]))
        path.unlink()
        broker.signal(signal.SIGHUP)
        broker.wait_for_log("configuration reloaded", times=2)
        assert error_code(client.ask(op="issue")) == "denied"
