"""Finds the actor of a credential: one module per kind of credential, and the authenticator that asks them.

Nothing here knows HTTP. `base` is the contract of a kind of credential, and `authenticator.Authenticator` is what an
interface asks.
"""
