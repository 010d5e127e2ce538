"""Reading the files that the operator writes: configuration, policy, actors, keys, certificates and checksums."""
