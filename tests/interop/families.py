"""Which clients there are: one row of the table for each version and transport of each."""

import contextlib
import os
import pathlib
import shutil
import tempfile

from clients import chromium
from clients.awscrt_client import AwsClient
from clients.mosquitto_client import MosquittoClient
from clients.paho_client import PahoClient
from clients.remote_client import ChromiumClient, Driver, NodeClient, RumqttcClient
from cluster import PROTOCOLS

HERE = pathlib.Path(__file__).parent
ALL = ("3.1", "3.1.1", "5.0")
TRANSPORTS = tuple(PROTOCOLS)


class Families(contextlib.ExitStack):
    """Starts what clients need to run in, and ends it."""

    def __init__(self, table, cluster):
        super().__init__()
        self._table, self._files, self._room = table, cluster.certificates, cluster.room
        self._transports = cluster.transports

    def rows(self):
        """Every client, those of one family apart from each other, so that they do not all want the same at once."""
        families = [self._paho(), self._aws(), self._mosquitto(), self._rumqttc(), self._node(), self._chromium()]
        rows = []
        while any(families):
            rows += [family.pop(0) for family in families if family]
        return rows

    def _each(self, make, versions, transports):
        """A row for each version over each transport; 3.1, which differs in its CONNECT only, over TCP."""
        wanted = [(version, transport) for version in versions for transport in transports]
        wanted = [row for row in wanted if row[1] in self._transports and (row[0] != "3.1" or row[1] == "tcp")]
        return [make(*row) for row in wanted]

    def _paho(self):
        return self._each(lambda *row: PahoClient(*row, self._files), ALL, TRANSPORTS)

    def _aws(self):
        return self._each(lambda *row: AwsClient(*row, self._files), ("3.1.1", "5.0"), ("tcp", "tls"))

    def _rumqttc(self):
        driver = self._driver([os.environ["INTEROP_RUMQTTC"]])
        return self._each(lambda *row: RumqttcClient(*row, self._files, driver), ("3.1.1", "5.0"), TRANSPORTS)

    def _node(self):
        modules = os.environ.get("INTEROP_NODE_MODULES")
        if not modules:
            self._table.skip("no MQTT.js from npm")
            return []
        driver = self._driver(["node", HERE / "clients/js/node.mjs", modules])
        return self._each(lambda *row: NodeClient(*row, self._files, driver), ALL, ("tcp", "tls", "ws", "wss"))

    def _chromium(self):
        modules = os.environ.get("INTEROP_NODE_MODULES")
        if not modules or not all(map(shutil.which, ("chromium", "certutil", "pk12util"))):
            self._table.skip("no Chromium (Debian packages chromium and libnss3-tools, npm package playwright-core)")
            return []
        if not chromium.may_show_certificates():
            self._table.skip("no mount namespace, so no certificate in Chromium")
            return []
        if not {"ws", "wss"} & set(self._transports):
            return []
        home = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory(prefix="flotte-chromium.")))
        browser = chromium.prepare(home, self._files)
        driver = self._driver(["node", HERE / "clients/js/chromium.mjs", modules, browser], os.environ | {"HOME": str(home)})
        return self._each(lambda *row: ChromiumClient(*row, self._files, driver), ("3.1.1", "5.0"), ("ws", "wss"))

    def _mosquitto(self):
        if not all(map(shutil.which, ("mosquitto_pub", "mosquitto_sub", "mosquitto_rr", "stdbuf"))):
            self._table.skip("no mosquitto_pub, mosquitto_sub and mosquitto_rr (Debian package mosquitto-clients)")
            return []
        return self._each(lambda *row: MosquittoClient(*row, self._files), ALL, ("tcp", "tls", "unix"))

    def _driver(self, command, environment=None):
        driver = Driver(command, environment)
        self.callback(driver.close)
        return driver.wait_started()
