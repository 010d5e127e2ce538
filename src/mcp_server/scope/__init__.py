"""The scope: parsing and resolving targets, and the policy that allows them."""
