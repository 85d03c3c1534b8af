"""The Serve edge: replicas, their deployment, handles, metrics, and the gateway of HTTP."""
