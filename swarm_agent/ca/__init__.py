"""The certificate authority: root, node certificates and their renewal, join tokens, the join server, and the keys of a locked manager."""
