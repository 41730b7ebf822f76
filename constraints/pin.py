"""Print a constraints file with what pip would install, from the report of `pip install --dry-run --report FILE`."""

import json
import sys
from pathlib import Path

report = json.loads(Path(sys.argv[1]).read_text())
environment = report["environment"]
packages = [item["metadata"] for item in report["install"] if not item["is_direct"]]  # direct: the project itself

print("# All that the project's extras install, and in turn need. `make pins` writes this file anew;")
print(f"# last with Python {environment['python_version']} on {environment['platform_system']}.")
for package in sorted(packages, key=lambda package: package["name"].lower()):
    # Without the build's label, as in 2.14.1+cpu: ==2.14.1 accepts every build.
    print(f"{package['name']}=={package['version'].partition('+')[0]}")
