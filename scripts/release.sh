#!/usr/bin/env bash
# Source archive and wheel of the commit, checked and tried in an environment of their own, without constraints: dist/.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -n "$(git status --porcelain)" ]; then
  echo "release.sh: there are changes that no commit holds: commit them, or put them away" >&2
  exit 1
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
git archive HEAD | tar -x --one-top-level="$scratch/source" # nothing that git does not hold
"${PYTHON:-python3}" -m venv "$scratch/tools"
"$scratch/tools/bin/pip" install --quiet build twine
rm -rf dist
"$scratch/tools/bin/python" -m build --outdir dist "$scratch/source"
"$scratch/tools/bin/twine" check --strict dist/*
(cd dist && sha256sum ./* | tee "$scratch/sums")

"${PYTHON:-python3}" -m venv "$scratch/clean"
"$scratch/clean/bin/pip" install --quiet dist/*.whl
cd "$scratch" # nothing of the clone is imported
commands=$("$scratch/clean/bin/eden" --help | sed -n 's/^  \([a-z-]*\) .*/\1/p')
for command in $commands; do
  "$scratch/clean/bin/eden" "$command" --help >"$scratch/help" 2>&1 && continue
  grep -q "pip install '\?eden_hf\[" "$scratch/help" || { cat "$scratch/help" >&2; exit 1; } # an extra, named
done
echo "$("$scratch/clean/bin/eden" --version): $(wc -w <<<"$commands") commands answer from the wheel"
