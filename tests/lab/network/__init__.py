"""A private network of real services with a known truth; docs/lab.md shows its map.

Read in this order: `truth` (what is where), `topology` (links and firewalls), `services` (the daemons), `build` (the
lab's own process 1), `handle` (what a test holds).
"""
