"""Who a credential stands for: one file for each kind of credential, and the gate that asks them.

Nothing here knows HTTP. `base` is the contract, `gate.Gate` what a interface asks.
"""
