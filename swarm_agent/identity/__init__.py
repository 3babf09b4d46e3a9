"""Who you are: certificate authority, join tokens, certificates and their renewal."""
