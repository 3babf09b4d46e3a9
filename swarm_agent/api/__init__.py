"""The Docker Engine HTTP API: one module a resource, views, engine pass-through."""
