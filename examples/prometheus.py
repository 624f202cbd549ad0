"""A host whose worker Prometheus watches: it embeds the lines of standard input, and serves /metrics meanwhile.

    python examples/prometheus.py --port 9464 < texts.txt
    curl -s http://127.0.0.1:9464/metrics | grep embed_worker_queue_seconds

The extra `prometheus` has what it needs. In a program of yours one line is enough, where its registry is:
`prometheus_client.REGISTRY.register(ClientCollector(client))`.
"""

import argparse
import sys

try:
    import prometheus_client
except ModuleNotFoundError:
    raise SystemExit("this needs prometheus-client: pip install 'embed-bridge[prometheus]'") from None

from bridge_client import EmbedClient
from bridge_client.integrations.prometheus import ClientCollector

# Queries that show what an operator looks at, for instance the 95th percentile of what requests wait:
#   histogram_quantile(0.95, rate(embed_worker_queue_seconds_bucket[5m]))
#   rate(embed_worker_requests_total{code!="ok"}[5m])
#   increase(embed_client_restarts_total[1h])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="a model's folder or name (%(default)s)")
    parser.add_argument("--port", type=int, default=9464, help="of the loopback interface; 0 for any (%(default)s)")
    options = parser.parse_args()
    registry = prometheus_client.CollectorRegistry()
    with EmbedClient(model=options.model) as client:
        registry.register(ClientCollector(client))
        try:
            server, thread = prometheus_client.start_http_server(options.port, addr="127.0.0.1", registry=registry)
        except (OSError, OverflowError) as error:
            raise SystemExit(f"port {options.port} of 127.0.0.1 cannot be taken: {error}") from None
        print(f"http://127.0.0.1:{server.server_port}/metrics", flush=True)
        for line in sys.stdin:
            found = client.embed_detailed([line.rstrip("\n")])
            print(f"{found.tokens[0]} tokens, {found.vectors.shape[1]} numbers", flush=True)
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    main()
