"""What a connection to a NATS server is made from."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field, fields

from ..config import NatsSettings


@dataclass(frozen=True, slots=True)
class ConnectOptions:
    """Where the server is, and as whom to connect; an empty string means none.

    Attributes:
        url: `nats://host:port`, or `tls://host:port` to refuse a connection that is not encrypted.
        nkey_seed_file, creds_file: read each time a client is built, so they may be replaced while it runs.
        tls_ca, tls_cert, tls_key: PEM files; any of them refuses a connection that is not encrypted.
        inbox_prefix: subject prefix under which the server lets this user receive replies.
        connect_timeout_s: longest wait for the first connection, s.
        name: what the server's monitoring calls this connection.
    """

    url: str = "nats://127.0.0.1:4222"
    user: str = ""
    password: str = field(default="", repr=False)
    nkey_seed_file: str = ""
    creds_file: str = ""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    inbox_prefix: str = "_INBOX"
    connect_timeout_s: float = 5.0
    name: str = "aikoryu"

    @classmethod
    def of(cls, settings: NatsSettings) -> ConnectOptions:
        """What the settings' group `nats` says."""
        return cls(**{item.name: getattr(settings, item.name) for item in fields(settings)})

    @property
    def encrypted(self) -> bool:
        """Whether a connection in plain text is refused."""
        return self.url.startswith("tls://") or bool(self.tls_ca or self.tls_cert or self.tls_key)

    @property
    def address(self) -> str:
        """The URL without a password, for messages."""
        return re.sub(r"//[^@/]*@", "//", self.url)

    def tls_context(self) -> ssl.SSLContext | None:
        """What TLS checks and shows, its files read now; None where plain text is allowed.

        Raises:
            OSError: a file is missing, or is not what it should be.
        """
        if not self.encrypted:
            return None
        context = ssl.create_default_context(cafile=self.tls_ca or None)
        if self.tls_cert or self.tls_key:
            context.load_cert_chain(self.tls_cert or self.tls_key, self.tls_key or None)
        return context
