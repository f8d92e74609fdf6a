"""The HTTP server: `restort serve`. The core (batcher, model_pool, request) knows nothing of HTTP."""
