"""REST: routes, response schemas and the OpenAPI page."""
