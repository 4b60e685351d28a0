"""HTTP: routes, wire schemas, conversions, server-sent events. A handler is ten lines."""
