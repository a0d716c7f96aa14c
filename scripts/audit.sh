#!/usr/bin/env bash
# Known vulnerabilities of the packages that this project runs with, by pip-audit and PyPI's advisories:
#   bash scripts/audit.sh            what is installed: the environment in .venv, or else the active one
#   bash scripts/audit.sh --lowest   the lowest versions that pyproject.toml allows
# Exits with 0 if none are known, 1 if some are, 2 if there is no pip-audit to be had, 3 if the advisories cannot be read.
# PIP_AUDIT names an installed pip-audit; otherwise one is installed for the time being, outside the environment.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -f .venv/bin/activate ] && source .venv/bin/activate
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

python - "${1:-}" > "$folder/packages" <<'PYTHON'
import re, sys, tomllib
from importlib.metadata import distributions

if sys.argv[1] == "--lowest":
    with open("pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    wanted = project["dependencies"] + [one for extra in project["optional-dependencies"].values() for one in extra]
    bounds = (re.match(r"([\w.-]+)>=([\w.]+)", one) for one in wanted)
    found = {bound[1]: bound[2] for bound in bounds if bound}
else:  # a local part, as in torch 2.9.0+cpu, is unknown to the advisories
    found = {one.name: one.version.split("+")[0] for one in distributions() if one.name != "llava-sp"}
print("\n".join(f"{name}=={version}" for name, version in sorted(found.items())))
PYTHON

if [ -z "${PIP_AUDIT:-}" ]; then
    python -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet pip-audit 2> "$folder/log" || {
        echo "error: pip-audit cannot be installed: $(tail -n 1 "$folder/log")" >&2
        exit 2
    }
    PIP_AUDIT="$folder/venv/bin/pip-audit"
fi
"$PIP_AUDIT" --requirement "$folder/packages" --no-deps --disable-pip --format json --progress-spinner off \
    > "$folder/found" 2> "$folder/log" || true # it exits with 1 both on findings and without a network

python - "$folder/found" <<'PYTHON'
import json, sys

try:
    with open(sys.argv[1]) as file:
        packages = json.load(file)["dependencies"]
except ValueError:
    packages = []
audited = [package for package in packages if "vulns" in package]
if not audited:
    sys.exit(print("offline: PyPI's advisories cannot be read from here, nothing is audited.", file=sys.stderr) or 3)
for package in audited:
    for hole in package["vulns"]:
        names = ", ".join([hole["id"], *hole.get("aliases", [])])
        fixed = ", ".join(hole["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {names}; fixed in {fixed}")
if skipped := [package["name"] for package in packages if "vulns" not in package]:
    print(f"not audited, as unknown to PyPI: {', '.join(skipped)}")
holes = sum(len(package["vulns"]) for package in audited)
print(f"{len(audited)} packages audited, {holes} known vulnerabilities")
sys.exit(1 if holes else 0)
PYTHON
