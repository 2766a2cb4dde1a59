"""Protocols that packets are labelled with: their numbers, their names, and where they usually are.

Source: IANA, Service Name and Transport Protocol Port Number Registry, and Assigned Internet Protocol Numbers.
"""

from __future__ import annotations

from enum import IntEnum


class Protocol(IntEnum):
    """What a packet carries. Numbers never change: they are what workers answer."""

    UNKNOWN = 0
    ICMP = 1
    IGMP = 2
    ICMP6 = 3
    GRE = 4
    ESP = 5
    AH = 6
    OSPF = 7
    EIGRP = 8
    PIM = 9
    VRRP = 10
    SCTP = 11
    DCCP = 12
    IPCOMP = 13
    RSVP = 14
    TLS = 20
    DTLS = 21
    HTTP = 22
    HTTP2 = 23
    QUIC = 24
    SSH = 25
    TELNET = 26
    RDP = 27
    RFB = 28
    DNS = 29
    MDNS = 30
    LLMNR = 31
    NETBIOS = 32
    DHCP = 33
    DHCP6 = 34
    NTP = 35
    PTP = 36
    SNMP = 37
    SYSLOG = 38
    SSDP = 39
    WSD = 40
    SMTP = 41
    IMAP = 42
    POP3 = 43
    FTP = 44
    TFTP = 45
    SMB = 46
    NFS = 47
    RPC = 48
    LDAP = 49
    KERBEROS = 50
    RADIUS = 51
    SIP = 52
    RTSP = 53
    RTMP = 54
    STUN = 55
    BITTORRENT = 56
    MQTT = 57
    AMQP = 58
    NATS = 59
    KAFKA = 60
    XMPP = 61
    IRC = 62
    COAP = 63
    POSTGRESQL = 64
    MYSQL = 65
    REDIS = 66
    MONGODB = 67
    CASSANDRA = 68
    MEMCACHED = 69
    MODBUS = 70
    S7 = 71
    DNP3 = 72
    BGP = 73
    RIP = 74
    BFD = 75
    HSRP = 76
    IKE = 77
    WIREGUARD = 78
    OPENVPN = 79
    L2TP = 80
    PPTP = 81
    VXLAN = 82
    GENEVE = 83
    GTP = 84
    TEREDO = 85
    SOCKS = 86
    RSYNC = 87
    DROPBOX = 88
    ECHO = 89

    @property
    def title(self) -> str:
        """Its usual name; nothing of one that is not known."""
        return _TITLES.get(self, self.name)


_TITLES = {
    Protocol.UNKNOWN: "",
    Protocol.ICMP6: "ICMPv6",
    Protocol.IPCOMP: "IPComp",
    Protocol.HTTP2: "HTTP/2",
    Protocol.TELNET: "Telnet",
    Protocol.RFB: "VNC",
    Protocol.MDNS: "mDNS",
    Protocol.NETBIOS: "NetBIOS",
    Protocol.DHCP6: "DHCPv6",
    Protocol.SYSLOG: "Syslog",
    Protocol.WSD: "WS-Discovery",
    Protocol.RPC: "ONC RPC",
    Protocol.KERBEROS: "Kerberos",
    Protocol.BITTORRENT: "BitTorrent",
    Protocol.KAFKA: "Kafka",
    Protocol.COAP: "CoAP",
    Protocol.POSTGRESQL: "PostgreSQL",
    Protocol.MYSQL: "MySQL",
    Protocol.REDIS: "Redis",
    Protocol.MONGODB: "MongoDB",
    Protocol.CASSANDRA: "Cassandra",
    Protocol.MEMCACHED: "Memcached",
    Protocol.MODBUS: "Modbus",
    Protocol.WIREGUARD: "WireGuard",
    Protocol.OPENVPN: "OpenVPN",
    Protocol.GENEVE: "Geneve",
    Protocol.TEREDO: "Teredo",
    Protocol.RSYNC: "rsync",
    Protocol.DROPBOX: "Dropbox",
    Protocol.ECHO: "Echo",
}

IP_PROTOCOLS = {
    1: Protocol.ICMP,
    2: Protocol.IGMP,
    33: Protocol.DCCP,
    46: Protocol.RSVP,
    47: Protocol.GRE,
    50: Protocol.ESP,
    51: Protocol.AH,
    58: Protocol.ICMP6,
    88: Protocol.EIGRP,
    89: Protocol.OSPF,
    103: Protocol.PIM,
    108: Protocol.IPCOMP,
    112: Protocol.VRRP,
    132: Protocol.SCTP,
}
"""What the number in the IP header names, without a doubt. TCP and UDP are asked what they carry."""

_BOTH_PORTS = {
    7: Protocol.ECHO,
    53: Protocol.DNS,
    88: Protocol.KERBEROS,
    111: Protocol.RPC,
    389: Protocol.LDAP,
    2049: Protocol.NFS,
    3478: Protocol.STUN,
    5060: Protocol.SIP,
}

TCP_PORTS = _BOTH_PORTS | {
    20: Protocol.FTP,
    21: Protocol.FTP,
    22: Protocol.SSH,
    23: Protocol.TELNET,
    25: Protocol.SMTP,
    80: Protocol.HTTP,
    102: Protocol.S7,
    110: Protocol.POP3,
    139: Protocol.NETBIOS,
    143: Protocol.IMAP,
    179: Protocol.BGP,
    443: Protocol.TLS,
    445: Protocol.SMB,
    465: Protocol.TLS,
    502: Protocol.MODBUS,
    554: Protocol.RTSP,
    587: Protocol.SMTP,
    636: Protocol.TLS,
    853: Protocol.TLS,
    873: Protocol.RSYNC,
    993: Protocol.TLS,
    995: Protocol.TLS,
    1080: Protocol.SOCKS,
    1723: Protocol.PPTP,
    1883: Protocol.MQTT,
    1935: Protocol.RTMP,
    3306: Protocol.MYSQL,
    3389: Protocol.RDP,
    4222: Protocol.NATS,
    5222: Protocol.XMPP,
    5432: Protocol.POSTGRESQL,
    5671: Protocol.TLS,
    5672: Protocol.AMQP,
    5900: Protocol.RFB,
    6379: Protocol.REDIS,
    6667: Protocol.IRC,
    6881: Protocol.BITTORRENT,
    8008: Protocol.HTTP,
    8080: Protocol.HTTP,
    8443: Protocol.TLS,
    8883: Protocol.TLS,
    9042: Protocol.CASSANDRA,
    9092: Protocol.KAFKA,
    11211: Protocol.MEMCACHED,
    20000: Protocol.DNP3,
    27017: Protocol.MONGODB,
}

UDP_PORTS = _BOTH_PORTS | {
    67: Protocol.DHCP,
    68: Protocol.DHCP,
    69: Protocol.TFTP,
    123: Protocol.NTP,
    137: Protocol.NETBIOS,
    138: Protocol.NETBIOS,
    161: Protocol.SNMP,
    162: Protocol.SNMP,
    319: Protocol.PTP,
    320: Protocol.PTP,
    443: Protocol.QUIC,
    500: Protocol.IKE,
    514: Protocol.SYSLOG,
    520: Protocol.RIP,
    546: Protocol.DHCP6,
    547: Protocol.DHCP6,
    1194: Protocol.OPENVPN,
    1645: Protocol.RADIUS,
    1646: Protocol.RADIUS,
    1701: Protocol.L2TP,
    1812: Protocol.RADIUS,
    1813: Protocol.RADIUS,
    1900: Protocol.SSDP,
    1985: Protocol.HSRP,
    2123: Protocol.GTP,
    2152: Protocol.GTP,
    3544: Protocol.TEREDO,
    3702: Protocol.WSD,
    3784: Protocol.BFD,
    4500: Protocol.IKE,
    4789: Protocol.VXLAN,
    5353: Protocol.MDNS,
    5355: Protocol.LLMNR,
    5683: Protocol.COAP,
    6081: Protocol.GENEVE,
    6881: Protocol.BITTORRENT,
    17500: Protocol.DROPBOX,
    51820: Protocol.WIREGUARD,
}
"""The protocol of a port where nothing else is known. From `CLIENT_PORTS` on, ports serve weak signatures alone."""

CLIENT_PORTS = 32768
"""Nothing is guessed from these ports, because clients take theirs from there."""
