"""The answer of the tool `scope` as lines of text, for people and for clients without structured content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def describe_answer(body: Mapping[str, Any]) -> list[str]:
    """Return the lines of an answer."""
    found = [_target_line(each) for each in body.get("targets", ())]
    if (plan := body.get("plan")) is not None:
        cost = ", ".join(
            f"{key} {plan[key]}" for key in ("risk", "addresses", "ports", "probes", "seconds") if key in plan
        )
        state = "would run" if plan["allowed"] else f"refused: {_refusal(plan)}"
        found.append(f"plan {plan['tool']}: {state}{f' ({cost})' if cost else ''}")
    if (policy := body.get("policy")) is not None:
        found += _policy_lines(policy)
    if (caller := body.get("caller")) is not None:
        limits = {key: value for key, value in caller.items() if value not in (None, [])}
        found += [f"your {key}: {', '.join(value)}" for key, value in limits.items() if isinstance(value, list)]
        found += [f"your {key}: {value}" for key, value in limits.items() if not isinstance(value, list)]
    return found


def _refusal(part: Mapping[str, Any]) -> str:
    return f"{part['reason'].removesuffix('.')}. {part['hint']}"


def _target_line(each: Mapping[str, Any]) -> str:
    if each["allowed"]:
        text = f"allowed: {each['target']}: {each['reason'].removesuffix('.')}"
    else:
        text = f"refused: {each['target']}: {_refusal(each)}"
    if each["max_risk"] is not None:
        text += f"; up to {each['max_risk']}"
    if each["packets_per_second"] is not None:
        text += f", {_number(each['packets_per_second'])} packets/s"
    numbers = [str(entry["line"]) for entry in each["policy_entries"] if entry["line"] is not None]
    if numbers:
        text += f"; line {', '.join(numbers)}"
    for window in each["windows"]:
        text += f"; window {window['name']} ({window['when']}) {_state(window)}"
    return text


def _number(value: float) -> str:
    """Return a limit as the operator wrote it: ``5000000`` and not ``5e+06``."""
    return str(int(value)) if value == int(value) else repr(value)


def _state(window: Mapping[str, Any]) -> str:
    return "is open" if window["open"] else f"opens {window['next_opening'] or 'never'}"


def _policy_lines(policy: Mapping[str, Any]) -> list[str]:
    found = [f"policy: {policy['name'] or policy['source']}"]
    for entry in policy["allow"]:
        terms = "" if entry["max_risk"] == "intrusive" else f": up to {entry['max_risk']}"
        if entry["packets_per_second"] is not None or entry["windows"]:
            terms = f": up to {entry['max_risk']}"
        if entry["packets_per_second"] is not None:
            terms += f", {_number(entry['packets_per_second'])} packets/s"
        if entry["windows"]:
            terms += f", in {', '.join(entry['windows'])}"
        found.append(f"allow {entry['entry']}{terms}")
    if policy["allow_total"] > len(policy["allow"]):
        found.append(f"and {policy['allow_total'] - len(policy['allow'])} more")
    if policy["exclude"]:
        rest = policy["exclude_total"] - len(policy["exclude"])
        found.append(f"exclude {', '.join(policy['exclude'])}{f' and {rest} more' if rest else ''}")
    found += [f"limit {key}: {_number(value)}" for key, value in policy["limits"].items() if value is not None]
    found += [f"window {each['name']}: {each['when']}, {_state(each)}" for each in policy["windows"]]
    if policy["resolvers"]:
        found.append(f"resolvers {', '.join(policy['resolvers'])}")
    return found
