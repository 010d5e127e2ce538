"""NSE scripts that add targets, contact third parties or the link, access files, or have tricky names."""

from __future__ import annotations

from typing import Final

from tests.containment.corpus.attack import CHARACTERS, VALUE, Attack

_THIRD_PARTIES: Final = (
    "asn-query",
    "whois-ip",
    "whois-domain",
    "hostmap-crtsh",
    "http-virustotal",
    "ip-geolocation-geoplugin",
    "shodan-api",
    "traceroute-geolocation",
    "dns-blacklist",
    "dns-zone-transfer",
    "dns-recursion",
    "fcrdns",
    "http-open-proxy",
    "http-security-headers",
    "http-favicon",
    "broadcast-ping",
    "broadcast-dhcp-discover",
    "broadcast-dns-service-discovery",
    "broadcast-upnp-info",
    "broadcast-netbios-master-browser",
    "broadcast-igmp-discovery",
    "broadcast-eigrp-discovery",
    "broadcast-listener",
    "targets-ipv6-multicast-echo",
    "targets-ipv6-multicast-slaac",
    "targets-ipv6-multicast-mld",
    "targets-traceroute",
    "targets-sniffer",
    "targets-asn",
    "ipv6-ra-flood",
    "llmnr-resolve",
    "lltd-discovery",
    "mrinfo",
    "mtrace",
    "firewalk",
    "path-mtu",
    "qscan",
    "ipidseq",
    "snmp-interfaces",
    "nbstat",
    "ftp-bounce",
    "socks-open-proxy",
    "dns-nsid",
    "resolveall",
    "http-robtex-reverse-ip",
)
_TRICKS: Final = (
    "broadcast",
    "external",
    "all",
    "intrusive",
    "brute",
    "exploit",
    "not intrusive",
    "default or broadcast",
    "(default)",
    "http-*",
    "*",
    "+broadcast-ping",
    "broadcast-ping.nse",
    "/usr/share/nmap/scripts/broadcast-ping.nse",
    "/run/canary/evil.nse",
    "../../../run/canary/evil",
    "scripts/broadcast-ping",
    "banner,broadcast-ping",
    "banner;id",
    "banner\n-oN",
    "Banner",
    "banner ",
    "\uff42anner",
    "-oN",
    "",
)

SCRIPTS: Final = (
    *(
        Attack(
            f"script-{name}",
            "a script that reaches beyond its host",
            {"target": "10.77.1.10", "mode": "scripts", "ports": "53,80", "scripts": [name]},
            VALUE,
        )
        for name in _THIRD_PARTIES
    ),
    *(
        Attack(
            f"script-trick-{number:02d}",
            f"a script name with injected text: {name!r}",
            {"target": "10.77.1.10", "mode": "scripts", "ports": "80", "scripts": [name]},
            VALUE | CHARACTERS,
        )
        for number, name in enumerate(_TRICKS, 1)
    ),
    Attack(
        "script-one-of-two",
        "a forbidden script after an allowed one",
        {"target": "10.77.1.10", "mode": "scripts", "ports": "80", "scripts": ["banner", "broadcast-ping"]},
        VALUE,
    ),
    Attack(
        "script-by-flag",
        "a script by its flag",
        {"target": "10.77.1.10", "extra_args": "-p 80 --script targets-sniffer"},
        VALUE,
    ),
    Attack(
        "script-both-ways",
        "a script by parameter and flag",
        {"target": "10.77.1.10", "scripts": ["banner"], "extra_args": "-p 80 --script broadcast-ping"},
        VALUE,
    ),
)
