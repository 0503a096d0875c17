"""lossd behind HAProxy with the configuration of ``deploy``, on the port that the command line names."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from deployment.proxy import CONFIGURATION, HAPROXY, NAME, NameServer, free_port


def main() -> None:
    """Start both, and end both at SIGTERM."""
    port = free_port()
    names = NameServer(["127.0.0.1"])
    environment = {
        "PATH": os.environ["PATH"], "PROXY_REPLICAS": f"{NAME}:{port}", "PROXY_DNS": f"127.0.0.1:{names.port}",
        "PROXY_BIND": f"127.0.0.1:{sys.argv[1]}", "PROXY_STATUS": f"127.0.0.1:{free_port()}", "PROXY_THREADS": "1",
    }  # fmt: skip
    command = [str(Path(sys.executable).parent / "lossd"), "serve", "--port", str(port), "--threads", "1"]
    started = [
        subprocess.Popen(command),
        subprocess.Popen([str(HAPROXY), "-f", str(CONFIGURATION)], env=environment),
    ]
    signal.signal(signal.SIGTERM, lambda *_: [each.terminate() for each in started])
    for each in started:
        each.wait()
    names.close()


if __name__ == "__main__":
    main()
