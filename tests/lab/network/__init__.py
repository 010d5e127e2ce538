"""A private network of real services with a known truth; docs/lab.md has its map.

Read the modules in this order: `truth` (hosts and ports), `topology` (links and firewalls), `services` (the daemons),
`build` (process 1 of the lab), `handle` (the object that a test uses).
"""
