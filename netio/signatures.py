"""How the first bytes of a payload look: one entry a form that a protocol begins with, and where that is written.

Patterns are bytes by their offset in the payload: two hexadecimal digits, `?` for any; or eight bits, `?` for any.
Entries are looked at from the first on, and the first that fits counts; so the longer ones come before the shorter.
RTP is not here: two bits are all that is fixed of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .protocols import Protocol

TCP, UDP = 6, 17
EITHER = (TCP, UDP)


@dataclass(frozen=True, slots=True)
class Signature:
    """One form of a protocol's first bytes.

    Attributes:
        protocol: whose.
        transports: numbers of the transport protocols it is looked for in.
        pattern: bytes by offset; at most two aligned words of eight bytes are touched.
        source: where the form is written.
        at_port: counts only where a port is the protocol's, because too few bits are fixed.
        least: bytes the payload has at least; what the pattern reaches over in any case.
    """

    protocol: Protocol
    transports: tuple[int, ...]
    pattern: Mapping[int, str]
    source: str
    at_port: bool = False
    least: int = 0

    def bytes(self) -> dict[int, tuple[int, int]]:
        """Mask and value by offset, of bytes of which something is fixed."""
        found = {}
        for start, text in self.pattern.items():
            for place, token in enumerate(text.split(), start):
                digits, width = (token, 1) if len(token) == 8 else (token, 4)
                mask = value = 0
                for digit in digits:
                    fixed = digit != "?"
                    mask = mask << width | (((1 << width) - 1) if fixed else 0)
                    value = value << width | (int(digit, 1 << width) if fixed else 0)
                if mask:
                    found[place] = mask, value
        return found

    def reach(self) -> int:
        """How many bytes the payload must have."""
        return max(self.least, *(start + len(text.split()) for start, text in self.pattern.items()))


def text(words: str) -> str:
    """The pattern of a text."""
    return words.encode().hex(" ")


def _texts(
    protocol: Protocol, transports: tuple[int, ...], source: str, *words: str, at_port: bool = False
) -> list[Signature]:
    return [Signature(protocol, transports, {0: text(word)}, source, at_port) for word in words]


# RFC 1035 4.1.1: a query or answer of opcode 0 with one question, and less than 256 records of each kind.
_DNS = "?0000??? ?0?????? 00 01 00 ?? 00 ?? 00 ??"
# The same of any number of questions and opcode, where the port says which of its relatives it is.
_NAMES = "????0??? ???????? 00 ?? 00 ?? 00 ?? 00 ??"

SIGNATURES: tuple[Signature, ...] = (
    # --- texts ---
    *_texts(Protocol.SIP, EITHER, "RFC 3261 7", "SIP/2.0 ", "INVITE sip:", "REGISTER sip:", "OPTIONS sip:", "ACK sip:"),
    *_texts(
        Protocol.SIP, EITHER, "RFC 3261 7", "BYE sip:", "CANCEL sip:", "SUBSCRIBE sip:", "NOTIFY sip:", "MESSAGE sip:"
    ),
    *_texts(Protocol.RTSP, (TCP,), "RFC 7826 20", "RTSP/1.0 ", "RTSP/2.0 ", "OPTIONS rtsp:", "DESCRIBE rtsp:"),
    *_texts(Protocol.RTSP, (TCP,), "RFC 7826 20", "SETUP rtsp:", "PLAY rtsp:", "TEARDOWN rtsp:"),
    *_texts(Protocol.HTTP2, (TCP,), "RFC 9113 3.4", "PRI * HTTP/2.0\r\n"),
    *_texts(Protocol.NATS, (TCP,), "docs.nats.io, client protocol", "INFO {", "CONNECT {"),
    *_texts(
        Protocol.NATS, (TCP,), "docs.nats.io, client protocol", "PUB ", "HPUB ", "SUB ", "MSG ", "HMSG ", at_port=True
    ),
    *_texts(
        Protocol.NATS,
        (TCP,),
        "docs.nats.io, client protocol",
        "PING\r\n",
        "PONG\r\n",
        "UNSUB ",
        "+OK\r\n",
        at_port=True,
    ),
    *_texts(Protocol.HTTP, (TCP,), "RFC 9112 2.1", "HTTP/1.", "GET ", "POST ", "HEAD ", "PUT ", "DELETE ", "OPTIONS "),
    *_texts(Protocol.HTTP, (TCP,), "RFC 9112 2.1", "CONNECT ", "PATCH ", "TRACE "),
    *_texts(
        Protocol.SSDP, (UDP,), "UPnP Device Architecture 2.0, 1", "M-SEARCH * HTTP/", "NOTIFY * HTTP/1.", "HTTP/1.1 200"
    ),
    *_texts(Protocol.SSH, (TCP,), "RFC 4253 4.2", "SSH-2.0-", "SSH-1."),
    *_texts(Protocol.SMTP, (TCP,), "RFC 5321 4", "EHLO ", "HELO ", "MAIL FROM:", "RCPT TO:"),
    *_texts(
        Protocol.SMTP, (TCP,), "RFC 5321 4", "220 ", "220-", "250 ", "250-", "354 ", "221 ", "DATA\r\n", at_port=True
    ),
    *_texts(Protocol.FTP, (TCP,), "RFC 959 4", "220 ", "220-", "230 ", "331 ", "USER ", "PASS ", "227 ", at_port=True),
    *_texts(Protocol.IMAP, (TCP,), "RFC 9051 7", "* OK ", "* CAPABILITY "),
    *_texts(
        Protocol.REDIS, (TCP,), "Redis serialization protocol", "+OK\r\n", "+PONG\r\n", "-ERR ", "$-1\r\n", at_port=True
    ),
    Signature(Protocol.REDIS, (TCP,), {0: "2a 3? 0d 0a 24 3?"}, "Redis serialization protocol"),
    *_texts(Protocol.POP3, (TCP,), "RFC 1939 3", "+OK "),
    *_texts(Protocol.POP3, (TCP,), "RFC 1939 3", "+OK\r\n", "-ERR", "USER ", "PASS ", "CAPA\r\n", at_port=True),
    *_texts(Protocol.AMQP, (TCP,), "AMQP 0-9-1 4.2.2, AMQP 1.0 2.2", "AMQP"),
    *_texts(Protocol.RFB, (TCP,), "RFC 6143 7.1.1", "RFB 003."),
    *_texts(Protocol.XMPP, (TCP,), "RFC 6120 4.2", "<stream:stream"),
    *_texts(Protocol.XMPP, (TCP,), "RFC 6120 4.2", "<?xml ", at_port=True),
    *_texts(Protocol.IRC, (TCP,), "RFC 2812 3.1", "NICK ", "USER ", "PING ", "PONG ", at_port=True),
    *_texts(Protocol.RSYNC, (TCP,), "rsyncd(5)", "@RSYNCD: "),
    *_texts(Protocol.WSD, (UDP,), "WS-Discovery 1.1, 2.4", "<?xml ", "<soap:Envelope", "<s:Envelope", at_port=True),
    *_texts(Protocol.DROPBOX, (UDP,), "the client's own announcements", '{"host_int": '),
    *_texts(Protocol.BITTORRENT, (UDP,), "BEP 5", "d1:ad2:id20:", "d1:rd2:id20:"),
    Signature(Protocol.BITTORRENT, (TCP,), {0: "13 " + text("BitTorrent prot")}, "BEP 3"),
    Signature(Protocol.SYSLOG, (UDP,), {0: "3c 3?"}, "RFC 5424 6", at_port=True),
    # --- encrypted ---
    Signature(Protocol.TLS, (TCP,), {0: "000101?? 03 00000??? 0???????"}, "RFC 8446 5.1", least=5),
    Signature(Protocol.DTLS, (UDP,), {0: "000101?? fe 111111?1 00"}, "RFC 6347 4.1", least=13),
    Signature(Protocol.QUIC, (UDP,), {0: "11?????? 00 00 00 01"}, "RFC 9000 17.2"),
    Signature(Protocol.QUIC, (UDP,), {0: "11?????? 6b 33 43 cf"}, "RFC 9369 3.1"),
    Signature(Protocol.QUIC, (UDP,), {0: "11?????? ff 00 00"}, "drafts of RFC 9000", least=7),
    Signature(Protocol.QUIC, (UDP,), {0: "1??????? 51 30 3? 3?"}, "gQUIC Q046, Q050"),
    Signature(Protocol.QUIC, (UDP,), {0: "00??1??1", 9: "51 30 3? 3?"}, "gQUIC Q043 and before"),
    Signature(Protocol.QUIC, (UDP,), {0: "1??????? 00 00 00 00"}, "RFC 9000 17.2.1", at_port=True),
    Signature(Protocol.RDP, (TCP,), {0: "03 00 00 ?? ?? e0", 11: text("Cooki")}, "MS-RDPBCGR 2.2.1.1"),
    Signature(Protocol.RDP, (TCP,), {0: "03 00 00 ?? ?? e0"}, "MS-RDPBCGR 2.2.1.1", at_port=True),
    Signature(Protocol.RDP, (TCP,), {0: "03 00 00 ?? ?? d0"}, "MS-RDPBCGR 2.2.1.2", at_port=True),
    Signature(Protocol.IKE, (UDP,), {16: "?? 00??0000"}, "RFC 7296 3.1, RFC 2408 3.1", at_port=True, least=28),
    Signature(
        Protocol.WIREGUARD, (UDP,), {0: "00000??? 00 00 00"}, "Donenfeld, WireGuard, NDSS 2017, 5.4", at_port=True
    ),
    Signature(Protocol.OPENVPN, (UDP,), {0: "38"}, "OpenVPN, P_CONTROL_HARD_RESET_CLIENT_V2", at_port=True, least=14),
    # --- names, addresses, time ---
    Signature(Protocol.MDNS, (UDP,), {2: _NAMES}, "RFC 6762 18", at_port=True),
    Signature(Protocol.LLMNR, (UDP,), {2: _NAMES}, "RFC 4795 2.1.1", at_port=True),
    Signature(
        Protocol.NETBIOS, (UDP,), {2: "???????? ???????? 00 ?? 00 ?? 00 ?? 00 ?? 20"}, "RFC 1002 4.2", at_port=True
    ),
    Signature(Protocol.NETBIOS, (UDP,), {2: "???????? ???????? 00 00 00 ?? 00 ?? 00 ??"}, "RFC 1002 4.2", at_port=True),
    Signature(Protocol.NETBIOS, (UDP,), {0: "00010??? 0000????"}, "RFC 1002 4.4", at_port=True, least=14),
    Signature(Protocol.NETBIOS, (TCP,), {0: "81 00 00 44 20"}, "RFC 1002 4.3.2"),
    Signature(Protocol.DNS, (UDP,), {2: _DNS}, "RFC 1035 4.1.1", least=17),
    Signature(Protocol.DNS, (UDP,), {2: _NAMES}, "RFC 1035 4.1.1", at_port=True),
    Signature(Protocol.DNS, (TCP,), {0: "0???????", 4: _DNS}, "RFC 1035 4.2.2", least=19),
    Signature(Protocol.DHCP, (UDP,), {0: "000000?? 01 06", 236: "63 82 53 63"}, "RFC 2131 2, 3"),
    Signature(Protocol.DHCP, (UDP,), {0: "000000??", 236: "63 82 53 63"}, "RFC 2131 2, 3"),
    Signature(Protocol.DHCP6, (UDP,), {0: "0000????"}, "RFC 8415 8", at_port=True, least=4),
    Signature(Protocol.NTP, (UDP,), {0: "??011???"}, "RFC 1305", at_port=True, least=48),
    Signature(Protocol.NTP, (UDP,), {0: "??100???"}, "RFC 5905 7.3", at_port=True, least=48),
    Signature(Protocol.PTP, (UDP,), {0: "?? ????0010 ?? ?? ?? 00"}, "IEEE 1588-2008 13.3", at_port=True, least=34),
    # --- directories, management, files ---
    Signature(Protocol.SNMP, (UDP,), {0: "30 0??????? 02 01 0000000? 04"}, "RFC 1157 4, RFC 1901 3"),
    Signature(Protocol.SNMP, (UDP,), {0: "30 0??????? 02 01 03 30"}, "RFC 3412 6"),
    Signature(Protocol.SNMP, (UDP,), {0: "30 81 ?? 02 01 000000?? 0?"}, "RFC 1157 4, RFC 1901 3", at_port=True),
    Signature(Protocol.SNMP, (UDP,), {0: "30 82 ?? ?? 02 01 000000??"}, "RFC 1157 4, RFC 3412 6", at_port=True),
    Signature(Protocol.SNMP, (UDP,), {0: "30 81 ?? 02 01 03 30"}, "RFC 3412 6", at_port=True),
    Signature(Protocol.LDAP, (TCP,), {0: "30 ?? 02 01 ?? 60 ?? 02 01 03"}, "RFC 4511 4.2"),
    Signature(Protocol.LDAP, EITHER, {0: "30 0??????? 02"}, "RFC 4511 4.1.1", at_port=True),
    Signature(Protocol.LDAP, EITHER, {0: "30 84 00 ?? ?? ?? 02"}, "RFC 4511 4.1.1", at_port=True),
    Signature(Protocol.LDAP, EITHER, {0: "30 8? ?? ?? 02"}, "RFC 4511 4.1.1", at_port=True),
    Signature(Protocol.KERBEROS, (UDP,), {0: "0110???? 8? ?? ?? ?? ?? a? 03 02 01 05"}, "RFC 4120 5.4"),
    Signature(Protocol.KERBEROS, (UDP,), {0: "011????? 8?"}, "RFC 4120 5.4", at_port=True),
    Signature(Protocol.KERBEROS, (TCP,), {0: "00 ?? ?? ?? 011????? 8?"}, "RFC 4120 7.2.2", at_port=True),
    Signature(Protocol.RADIUS, (UDP,), {0: "00?????? ?? 0000????"}, "RFC 2865 3", at_port=True, least=20),
    Signature(Protocol.SMB, (TCP,), {0: "00 ?? ?? ??", 4: "ff " + text("SMB")}, "MS-CIFS 2.2.3.1"),
    Signature(Protocol.SMB, (TCP,), {0: "00 ?? ?? ??", 4: "fe " + text("SMB")}, "MS-SMB2 2.2.1"),
    Signature(Protocol.SMB, (TCP,), {0: "00 ?? ?? ??", 4: "fd " + text("SMB")}, "MS-SMB2 2.2.41"),
    Signature(Protocol.NFS, (UDP,), {4: "00 00 00 00 00 00 00 02 00 01 86 a3"}, "RFC 5531 9, RFC 7530"),
    Signature(Protocol.NFS, (TCP,), {8: "00 00 00 00 00 00 00 02 00 01 86 a3"}, "RFC 5531 9, RFC 7530"),
    Signature(Protocol.RPC, (UDP,), {4: "00 00 00 00 00 00 00 02 00 01 86"}, "RFC 5531 9"),
    Signature(Protocol.RPC, (TCP,), {8: "00 00 00 00 00 00 00 02 00 01 86"}, "RFC 5531 9"),
    Signature(Protocol.TFTP, (UDP,), {0: "00 00000???"}, "RFC 1350 5", at_port=True),
    # --- calls and media ---
    Signature(Protocol.STUN, EITHER, {0: "00?????? ?? ?? ??????00 21 12 a4 42"}, "RFC 8489 5", least=20),
    Signature(Protocol.RTMP, (TCP,), {0: "03 ?? ?? ?? ?? 00 00 00 00"}, "Adobe RTMP 1.0, 5.2", at_port=True),
    # --- queues and databases ---
    Signature(Protocol.MQTT, (TCP,), {0: "10 0??????? 00 04 " + text("MQTT")}, "MQTT 5.0, 3.1"),
    Signature(Protocol.MQTT, (TCP,), {0: "10 1??????? 0??????? 00 04 " + text("MQTT")}, "MQTT 5.0, 3.1"),
    Signature(Protocol.MQTT, (TCP,), {0: "10 0??????? 00 06 " + text("MQIsdp")}, "MQTT 3.1, 3.1"),
    Signature(Protocol.MQTT, (TCP,), {0: "20 02 0000000? 00000???"}, "MQTT 3.1.1, 3.2", at_port=True),
    Signature(Protocol.POSTGRESQL, (TCP,), {0: "00 00 00 08 04 d2 16 2f"}, "PostgreSQL 17, 53.7 SSLRequest"),
    Signature(
        Protocol.POSTGRESQL,
        (TCP,),
        {0: "00 00 ?? ?? 00 03 00 00 " + text("user")},
        "PostgreSQL 17, 53.7 StartupMessage",
    ),
    Signature(
        Protocol.POSTGRESQL, (TCP,), {0: "52 00 00 00 ?? 00 00 00"}, "PostgreSQL 17, 53.7 Authentication", at_port=True
    ),
    Signature(Protocol.POSTGRESQL, (TCP,), {0: "51 00 00 ?? ??"}, "PostgreSQL 17, 53.7 Query", at_port=True),
    Signature(Protocol.MYSQL, (TCP,), {0: "?? 0? 00 00 0a 3? 2e"}, "MySQL, HandshakeV10"),
    Signature(Protocol.MYSQL, (TCP,), {0: "?? 0? 00 00 0a 3? 3? 2e"}, "MySQL, HandshakeV10"),
    Signature(Protocol.MYSQL, (TCP,), {2: "00 00000???"}, "MySQL, protocol basics", at_port=True, least=5),
    Signature(Protocol.MONGODB, (TCP,), {2: "00 00", 12: "dd 07 00 00"}, "MongoDB wire protocol, OP_MSG"),
    Signature(Protocol.MONGODB, (TCP,), {2: "00 00", 12: "d4 07 00 00"}, "MongoDB wire protocol, OP_QUERY"),
    Signature(
        Protocol.CASSANDRA,
        (TCP,),
        {0: "?0000??? 0000???? ?? ?? 000????? 00 0???????"},
        "CQL binary protocol v4, 2",
        at_port=True,
        least=9,
    ),
    # --- machines ---
    Signature(Protocol.S7, (TCP,), {0: "03 00 ?? ?? 02 f0 80 32"}, "RFC 1006 6, S7comm"),
    Signature(Protocol.S7, (TCP,), {0: "03 00 ?? ?? 02 f0 80 72"}, "RFC 1006 6, S7comm-plus"),
    Signature(Protocol.MODBUS, (TCP,), {2: "00 00 0000000?"}, "Modbus on TCP/IP V1.0b, 3.1.3", at_port=True, least=8),
    Signature(Protocol.DNP3, (TCP,), {0: "05 64"}, "IEEE 1815-2012 9.2", at_port=True, least=10),
    Signature(Protocol.COAP, (UDP,), {0: "01??0???"}, "RFC 7252 3", at_port=True, least=4),
    # --- routing and tunnels ---
    Signature(Protocol.BGP, (TCP,), {0: "ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff"}, "RFC 4271 4.1", least=19),
    Signature(Protocol.RIP, (UDP,), {0: "0000???? 000000?? 00 00"}, "RFC 2453 4", at_port=True),
    Signature(Protocol.BFD, (UDP,), {0: "001?????"}, "RFC 5880 4.1", at_port=True, least=24),
    Signature(Protocol.HSRP, (UDP,), {0: "00 000000??"}, "RFC 2281 5.1", at_port=True, least=20),
    Signature(Protocol.PPTP, (TCP,), {2: "00 0000000? 1a 2b 3c 4d"}, "RFC 2637 2"),
    Signature(Protocol.L2TP, (UDP,), {0: "???0?0?? 0000001?"}, "RFC 2661 3.1, RFC 3931 3.2", at_port=True),
    Signature(Protocol.VXLAN, (UDP,), {0: "0000?000 00 00 00 ?? ?? ?? 00"}, "RFC 7348 5", at_port=True),
    Signature(Protocol.GENEVE, (UDP,), {0: "00?????? ??000000"}, "RFC 8926 3.4", at_port=True, least=8),
    Signature(Protocol.GTP, (UDP,), {0: "001?0???"}, "3GPP TS 29.281 5.1", at_port=True, least=8),
    Signature(Protocol.GTP, (UDP,), {0: "010??000"}, "3GPP TS 29.274 5.1", at_port=True, least=8),
    Signature(Protocol.SOCKS, (TCP,), {0: "05 0000????"}, "RFC 1928 3", at_port=True),
    Signature(Protocol.TELNET, (TCP,), {0: "ff 11111??? ?? ff 11111???"}, "RFC 854"),
    Signature(Protocol.TELNET, (TCP,), {0: "ff 1111????"}, "RFC 854", at_port=True),
)
