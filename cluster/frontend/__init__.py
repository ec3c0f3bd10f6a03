"""The gRPC surface: the HTTP/2 front, and the services that validate, route and answer."""
