"""swarmctl: what the docker CLI has no verb for."""
