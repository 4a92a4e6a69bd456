"""Who may ask for what: hosts, tokens, sessions, scopes, bodies and the headers of every response."""
