"""The policies between the wire and the engine: route, admit, bound, account."""
