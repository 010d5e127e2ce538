"""HTTP: authentication, authorization, limits, TLS and the server socket."""
