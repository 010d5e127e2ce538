"""What MCP and REST over HTTP share: authentication, authorization, limits, TLS and the listening socket."""
