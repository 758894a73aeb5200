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
wheel=$(echo "$PWD"/dist/*.whl)
"$scratch/clean/bin/pip" install --quiet "$wheel"
unset PYTHONPATH
cd "$scratch" # nothing of the clone is imported
commands=$("$scratch/clean/bin/eden" --help | sed -n 's/^  \([a-z-]*\) .*/\1/p')
for command in $commands; do
  "$scratch/clean/bin/eden" "$command" --help >"$scratch/help" 2>&1 && continue
  grep -q "pip install '\?eden_hf\[" "$scratch/help" || { cat "$scratch/help" >&2; exit 1; } # an extra, named
done
echo "$("$scratch/clean/bin/eden" --version): $(wc -w <<<"$commands") commands answer from the wheel"

"$scratch/clean/bin/pip" install --quiet "${wheel}[evaluation,export]" pytest pytest-timeout
cd "$scratch/source" && rm -r eden_hf # the package is the wheel's
snippets='tests/test_documentation.py::test_the_snippets_of_a_page_run[README.md]'
"$scratch/clean/bin/python" -m pytest -rP --show-capture=stdout "$snippets" >"$scratch/log" 2>&1 || { cat "$scratch/log" >&2; exit 1; }
grep "^not run" "$scratch/log"
grep -q "1 passed" "$scratch/log" # and was not skipped
echo "All other snippets of README.md ran from the wheel"
