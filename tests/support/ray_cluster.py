"""A program: a Ray cluster of two machines, on the loopback interface, until its standard input ends.

It prints the cluster's address. A line on standard input takes the second machine away.
"""

import os
import sys
from typing import Any

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # listens on 127.0.0.1 only
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster  # reads these variables when it is imported


def main() -> None:
    """Start it, and take it down."""
    resources = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster: Any = Cluster(initialize_head=True, head_node_args=resources | {"include_dashboard": False})
    try:
        second = cluster.add_node(**resources)
        print(cluster.address, flush=True)
        if sys.stdin.readline():
            cluster.remove_node(second, allow_graceful=False)
            print("removed", flush=True)
            sys.stdin.read()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
