"""Names with addresses outside the scope, aliases, rebinding, and invalid names. `false_dns` answers the queries."""

from __future__ import annotations

from typing import Final

from tests.containment.corpus.attack import ACCEPTED, CHARACTERS, SCOPE, TARGET, Attack

_UNRESOLVABLE: Final = SCOPE | {"target_unresolvable"}
_EITHER_TURN: Final = SCOPE | {"accepted"}
"""The name is resolved once. The call is accepted if that address is in scope, and refused otherwise."""

_RESOLVED: Final = (
    ("out", SCOPE),
    ("out6", SCOPE),
    ("excluded", SCOPE),
    ("gateway", SCOPE),
    ("mixed", SCOPE),
    ("mixed-many", SCOPE),
    ("mixed6", SCOPE),
    ("mapped", SCOPE),
    ("nat64", SCOPE),
    ("sixtofour", SCOPE),
    ("compatible", SCOPE),
    ("loopback", SCOPE),
    ("loopback6", SCOPE),
    ("zero", SCOPE),
    ("metadata", SCOPE),
    ("multicast", SCOPE),
    ("broadcast", SCOPE),
    ("linklocal", SCOPE),
    ("alias-out", SCOPE),
    ("alias-chain", SCOPE),
    ("alias-excluded", SCOPE),
    ("alias-loop", _UNRESOLVABLE),
    ("xn--bcher-kva", SCOPE),
    ("does-not-exist", _UNRESOLVABLE),
    ("OUT", SCOPE),
    ("rebind", _EITHER_TURN),
    ("rebind-link", _EITHER_TURN),
    ("in", ACCEPTED),
    ("in6", ACCEPTED),
    ("alias-in", ACCEPTED),
)
_TEXTS: Final = (
    ("other-suffix", "web2.elsewhere.example", SCOPE),
    ("suffix-inside", "out.lab.internal.elsewhere.example", SCOPE),
    ("suffix-glued", "outlab.internal", SCOPE),
    ("suffix-itself", "lab.internal", SCOPE),
    ("localhost", "localhost", SCOPE),
    ("localhost-domain", "localhost.localdomain", SCOPE),
    ("one-label", "web2", SCOPE),
    ("ip6-localhost", "ip6-localhost", SCOPE),
    ("metadata-name", "metadata.google.internal", SCOPE),
    ("two-dots-at-end", "out.lab.internal..", TARGET),
    ("dot-first", ".lab.internal", TARGET),
    ("empty-label", "out..lab.internal", TARGET),
    ("underscore", "_http._tcp.lab.internal", TARGET),
    ("hyphen-first", "x.-out.lab.internal", TARGET),
    ("label-too-long", f"{'a' * 64}.lab.internal", TARGET),
    ("unicode", "b\u00fccher.lab.internal", TARGET),
    ("cyrillic-a", "out.l\u0430b.internal", TARGET),
    ("full-width-dot", "out\uff0elab\uff0einternal", TARGET),
    ("ace-prefix-bad", "xn--\u00fc.lab.internal", TARGET),
    ("ace-of-a-control", "xn--a.lab.internal", TARGET | {"target_unresolvable"}),
    ("question-hyphens", "ab--cd.lab.internal", TARGET),
    ("wildcard", "*.lab.internal", TARGET),
    ("name-with-prefix", "in.lab.internal/24", TARGET),
    ("name-with-range", "in.lab.internal,out.lab.internal", TARGET | SCOPE),
    ("name-with-port", "in.lab.internal:80", TARGET),
    ("name-with-path", "in.lab.internal/../out", TARGET),
    ("name-url", "http://out.lab.internal/", TARGET),
    ("name-user", "in@out.lab.internal", TARGET),
    ("number-last", "out.lab.internal.0x7f", TARGET),
    ("inet-aton-name", "0x7f.1", TARGET),
    ("nul", "in.lab.internal\0.elsewhere.example", CHARACTERS),
    ("backslash", "in\\.lab.internal", TARGET),
    ("newline", "in.lab.internal\nout.lab.internal", CHARACTERS),
    ("space", "in.lab.internal out.lab.internal", TARGET),
    ("option", "-iLin.lab.internal", CHARACTERS),
)

NAMES: Final = (
    *(
        Attack(
            f"name-{first}",
            "a name of the allowed suffix",
            {"target": f"{first}.lab.internal", "mode": "ports", "ports": "80"},
            codes,
        )
        for first, codes in _RESOLVED
    ),
    *(
        Attack(
            f"name-text-{name}", "a name outside the allowed suffix", {"target": text}, codes, json_only="\0" in text
        )
        for name, text, codes in _TEXTS
    ),
    Attack(
        "name-list-one-out",
        "one of two names is outside the scope",
        {"target": ["in.lab.internal", "out.lab.internal"], "ports": "80"},
        SCOPE,
    ),
    Attack(
        "name-trailing-dot", "an absolute name outside the scope", {"target": "out.lab.internal.", "ports": "80"}, SCOPE
    ),
)
