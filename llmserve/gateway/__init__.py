"""The policies between the wire and the engine: authenticate, route, admit, account."""
